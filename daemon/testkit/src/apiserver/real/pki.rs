//! The secrets of a control plane that lives for minutes: a certificate authority, the server's certificate,
//! the key that signs tokens, and the administrator's token.

use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Writes `ca.crt`, `server.crt`, `server.key`, `tokens.key`, `tokens.pub` and `tokens.csv` into `directory`,
/// and returns the administrator's token.
pub(super) fn write(directory: &Path, ip: IpAddr) -> Result<String> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    ca.distinguished_name.push(DnType::CommonName, "lab");
    let ca_certificate = ca.self_signed(&ca_key)?;

    let server_key = KeyPair::generate()?;
    let names = [ip.to_string(), "127.0.0.1".into(), "localhost".into(), "kubernetes.default.svc".into()];
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let server_certificate = server.signed_by(&server_key, &Issuer::new(ca, ca_key))?;

    let tokens_key = KeyPair::generate()?;
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("drawing a token")?;
    let admin_token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, text) in [
        ("ca.crt", ca_certificate.pem()),
        ("server.crt", server_certificate.pem()),
        ("server.key", server_key.serialize_pem()),
        ("tokens.key", tokens_key.serialize_pem()),
        ("tokens.pub", tokens_key.public_key_pem()),
        ("tokens.csv", format!("{admin_token},admin,admin,system:masters\n")),
    ] {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(admin_token)
}
