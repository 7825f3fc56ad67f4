//! Announcements of nodes that are only in a registry: sound ones, with a key that nobody holds the secret of.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use warren_api::announcement::VERSION;
use warren_api::{Announcement, Backend, EpochKey, PublicKey, annotations, names};

/// The annotations by which the node `name` announces `key` with all that the registry gave it.
pub fn annotations(
    name: &str,
    uid: &str,
    pod_cidrs: Vec<IpNet>,
    endpoints: Vec<IpAddr>,
    key: PublicKey,
) -> Vec<(String, String)> {
    let announcement = Announcement {
        version: VERSION,
        node: name.to_owned(),
        uid: uid.to_owned(),
        epochs: vec![EpochKey {
            epoch: 0,
            public_key: key,
            port: names::LISTEN_PORT,
            lanes: 1,
            unknown: serde_json::Map::new(),
        }],
        pod_cidrs,
        endpoints,
        backend: Backend::Userspace,
        fallback: None,
        mtu: 1420,
        encrypts_host: false,
        unknown: serde_json::Map::new(),
    };
    let annotations = annotations::publish(&announcement);
    annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A public key: any 255 bits are one.
pub fn random_key() -> Result<PublicKey> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[31] &= 0x7f;
    PublicKey::from_bytes(bytes).context("drawing a public key")
}
