//! A real kube-apiserver with its etcd, on a machine of a lab's underlay.
//!
//! ```text
//!   netns control-plane                                    underlay
//!     etcd 127.0.0.1:2379 ◄── kube-apiserver :6443 ──────── eth0 192.0.2.251
//!                                   ▲
//!                          Client (this program, from inside)
//! ```
//!
//! - [`ApiServer::start`] starts both, with a certificate authority, tokens and data on the lab's tmpfs, and
//!   returns when the server is ready (3 to 4 s). Authorization is `Node,RBAC`, admission the server's default
//!   with NodeRestriction: what a cluster made by kubeadm has. No controller runs: nothing happens by itself.
//! - [`ApiServer::client`] makes requests of any kind, as anybody whose token one has.
//! - [`ApiServer::service_account_token`] gives tokens as a kubelet gets them for its pods.
//! - `kill`, `restart`, `pause`, `slow`, `cut`, `compact` and the like are what happens to control planes
//!   (`faults.rs`).
//!
//! Which server: `daemon/testkit/bin/kube-apiserver.sh` says, and `$KUBEBUILDER_ASSETS` before it.

mod client;
mod faults;
mod pki;
mod programs;
mod tokens;

use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;
use crate::wait;

pub use client::{Client, Patch, Response};
pub use faults::{Cut, Slow};
pub use programs::ensure_present;

/// The ranges of services, as a list: that of a server with an IPv4 address (kubeadm's default), and that of
/// one without.
pub const SERVICE_CIDRS: &str = "10.96.0.0/12,fd00:96::/112";

/// Where the API server listens, on all addresses of its machine.
const PORT: u16 = 6443;

/// Where etcd listens, inside the machine.
const ETCD: &str = "http://127.0.0.1:2379";

/// How long a start may take: 4 s on two idle cores, several times that when tests run beside it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running API server with its data. Dropping it ends both programs; its machine stays with its owner.
#[derive(Debug)]
pub struct ApiServer {
    machine: Netns,
    address: SocketAddr,
    directory: PathBuf,
    admin_token: String,
    programs: programs::Programs,
    etcd: Mutex<Option<Child>>,
    server: Mutex<Option<Child>>,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver on `machine`, which nodes reach by `ip`. `directory` (an empty one) will
    /// hold data, secrets and logs.
    pub fn start(machine: Netns, ip: IpAddr, directory: &Path) -> Result<Self> {
        let programs = programs::find()?;
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        let admin_token = pki::write(directory, ip)?;
        let api = Self {
            machine,
            address: SocketAddr::new(ip, PORT),
            directory: directory.to_owned(),
            admin_token,
            programs,
            etcd: Mutex::default(),
            server: Mutex::default(),
        };
        api.start_etcd()?;
        api.start_server()?;
        Ok(api)
    }

    /// The server as clients name it: `https://192.0.2.251:6443`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The address that nodes connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The namespace that it runs in.
    pub fn machine(&self) -> &Netns {
        &self.machine
    }

    /// The file of the certificate authority that vouches for the server.
    pub fn ca_path(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// A client with all rights.
    pub fn client(&self) -> Client<'_> {
        self.client_with(&self.admin_token)
    }

    /// A client with somebody's token.
    pub fn client_with(&self, token: &str) -> Client<'_> {
        Client::new(self, token)
    }

    /// The text of a kubeconfig with all rights, which names a file of this program's tmpfs.
    pub fn admin_kubeconfig(&self) -> String {
        self.kubeconfig(&format!("token: {}", self.admin_token))
    }

    /// The text of a kubeconfig that reads its token from a file, each time anew, as a pod's does.
    pub fn kubeconfig_with_token_file(&self, token: &Path) -> String {
        self.kubeconfig(&format!("tokenFile: {}", token.display()))
    }

    fn kubeconfig(&self, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster:\n    server: {}\n    certificate-authority: {}\n\
             users:\n- name: lab\n  user:\n    {user}\n\
             contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: lab\n",
            self.url(),
            self.ca_path().display()
        )
    }

    /// What the server calls itself: `v1.20.2`.
    pub fn version(&self) -> Result<String> {
        let version = self.client().get("/version")?.ok()?;
        Ok(version["gitVersion"].as_str().context("/version without gitVersion")?.to_owned())
    }

    /// The end of a program's log (`etcd` or `kube-apiserver`), for the report of a failure.
    pub fn log(&self, program: &str) -> String {
        let log = fs::read_to_string(self.log_path(program)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn log_path(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.log"))
    }

    fn start_etcd(&self) -> Result<()> {
        let mut command = self.machine.command(&self.programs.etcd);
        let peers = "http://127.0.0.1:2380";
        command.arg("--data-dir").arg(self.directory.join("etcd"));
        command.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        command.args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        self.spawn(&self.etcd, "etcd", command)?;
        wait::until("etcd", PATIENCE, || {
            self.alive(&self.etcd, "etcd")?;
            self.etcd_revision()
        })
        .map(drop)
    }

    fn start_server(&self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        // The service range has to be of the family that is advertised.
        let (v4, v6) = SERVICE_CIDRS.split_once(',').expect("two ranges");
        let (services, any) = match self.address.ip() {
            IpAddr::V4(_) => (v4, "0.0.0.0"),
            IpAddr::V6(_) => (v6, "::"),
        };
        let mut command = self.machine.command(&self.programs.server);
        for (flag, value) in [
            ("etcd-servers", ETCD.to_owned()),
            ("bind-address", any.to_owned()),
            ("advertise-address", self.address.ip().to_string()),
            ("secure-port", PORT.to_string()),
            ("tls-cert-file", file("server.crt")),
            ("tls-private-key-file", file("server.key")),
            ("client-ca-file", file("ca.crt")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", file("tokens.pub")),
            ("service-account-signing-key-file", file("tokens.key")),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            ("service-cluster-ip-range", services.to_owned()),
            // Certificates that it would make for itself; all that it needs are given above.
            ("cert-dir", file("unused")),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        if self.programs.minor <= 20 {
            // Without it, such a server keeps the first of a Node's pod CIDRs alone.
            command.arg("--feature-gates=IPv6DualStack=true");
        }
        self.spawn(&self.server, "kube-apiserver", command)?;
        wait::until("the API server", PATIENCE, || {
            self.alive(&self.server, "kube-apiserver")?;
            self.ready()?;
            // Made by the server itself, a moment after it is ready.
            self.client().get("/api/v1/namespaces/default")?.ok()
        })
        .map(drop)
        .with_context(|| format!("its log:\n{}", self.log("kube-apiserver")))
    }

    /// Succeeds when the server says so.
    pub fn ready(&self) -> Result<()> {
        let response = self.client().get("/readyz")?;
        ensure!(response.status == 200, "/readyz: HTTP {}: {}", response.status, response.text);
        Ok(())
    }

    fn spawn(&self, slot: &Mutex<Option<Child>>, name: &str, mut command: Command) -> Result<()> {
        let mut running = slot.lock().expect("no thread panics with the lock");
        ensure!(running.is_none(), "{name} already runs");
        let path = self.log_path(name);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *running = Some(command.spawn().with_context(|| format!("starting {name}"))?);
        Ok(())
    }

    fn alive(&self, slot: &Mutex<Option<Child>>, name: &str) -> Result<()> {
        let mut running = slot.lock().expect("no thread panics with the lock");
        let child = running.as_mut().with_context(|| format!("{name} was not started"))?;
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{name} has ended: {status}\n{}", self.log(name)),
        }
    }
}

impl Drop for ApiServer {
    /// Leaves no zombie, and nobody who writes into the directory.
    fn drop(&mut self) {
        for slot in [&mut self.server, &mut self.etcd] {
            if let Some(child) = slot.get_mut().ok().and_then(Option::as_mut) {
                // Both fail only where it has ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
