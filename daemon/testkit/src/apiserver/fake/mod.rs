//! A fake Kubernetes API server: real HTTPS in a namespace, `v1` Nodes as a real server keeps and tells them,
//! and every fault on demand. For what a real server cannot do in a test: thousands of Nodes, compaction at the
//! right moment, half an event.
//!
//! ```no_run
//! # use std::net::SocketAddr;
//! # use warren_testkit::{apiserver::fake::{ApiServer, Failure, NodeSpec, Options, Verb}, netns::Netns};
//! # fn scenario(netns: &Netns) -> anyhow::Result<()> {
//! let api = ApiServer::start(netns, "127.0.0.1:6443".parse()?, Options::default())?;
//! for number in 1..=5000 {
//!     api.add_node(&NodeSpec::numbered(number))?;
//! }
//! std::fs::write("/tmp/kubeconfig", api.kubeconfig())?; // for warrend --registry kubernetes:/tmp/kubeconfig
//! api.set_heartbeats(Some(std::time::Duration::from_secs(10)));
//! api.fail(Failure::status(429).retry_after(1).of(Verb::Patch).times(3));
//! api.compact_and_expire_watches();
//! anyhow::ensure!(api.count(Verb::Patch).requests == 0 && api.writes().is_empty());
//! # Ok(()) }
//! ```
//!
//! It serves Nodes (LIST in pages, WATCH, GET, PATCH: server-side apply of annotations and labels with owners in
//! `managedFields`, strategic merge, JSON merge, JSON patch), as whole objects or as metadata alone, and takes Events of
//! events.k8s.io/v1. It has neither RBAC nor admission, no other resources, no protobuf, compression, HTTP/2 or
//! streaming lists; what it does not do it refuses with *501* and a reason, so that no test rests on a guess. A
//! real API server beside it keeps it honest.
//!
//! One thread with a runtime of its own serves; all methods are called from the test's thread and take effect
//! at once.

mod answer;
mod apply;
mod counters;
mod faults;
mod list;
mod managed;
mod mutate;
mod object;
mod patch;
mod reply;
mod request;
mod serve;
mod shared;
mod spec;
mod status;
mod store;
mod tls;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio_rustls::TlsAcceptor;

pub use counters::{Count, Outcome, Verb, Write};
pub use faults::{Failure, Garbage, Stall};
pub use patch::PatchKind;
pub use spec::{NodeSpec, Taint};

use crate::netns::Netns;
use shared::{Shared, lock};

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Without it, plain HTTP: never in production, sometimes in a debugger.
    pub tls: bool,
    /// The bearer token that is asked for; `None` lets everybody in.
    pub token: Option<String>,
    /// How often watches that want bookmarks get one. Real servers: about every minute.
    pub bookmark_interval: Duration,
    /// How many events are kept for watches that begin in the past. Real servers aim at 75 s; the default is
    /// two minutes of 5,000 nodes with a heartbeat every 10 s.
    pub history: usize,
    /// How `limit` is understood.
    pub paging: Paging,
}

/// Whether lists come in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// Always, when `limit` asks for it.
    Always,
    /// Not with `resourceVersion=0`: older servers answer that from their cache, and whole.
    NotFromCache,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: true,
            token: Some("the-token-of-the-fake".to_owned()),
            bookmark_interval: Duration::from_secs(60),
            history: 65_536,
            paging: Paging::Always,
        }
    }
}

/// A running server. Dropping it ends it, and cuts all its connections.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// The authority's certificate, with TLS.
    ca_pem: Option<String>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts a server in `netns` at `address`, which must be there; port 0 takes any. It listens when this
    /// returns.
    pub fn start(netns: &Netns, address: SocketAddr, options: Options) -> Result<Self> {
        let identity = if options.tls { Some(tls::identity(address.ip())?) } else { None };
        let (acceptor, ca_pem) = identity.map(|identity| (identity.acceptor, identity.ca_pem)).unzip();
        let shared = Shared::new(options);
        let (report, listening) = mpsc::channel();
        let of_thread = shared.clone();
        // A thread begun inside stays inside.
        let thread = netns.run(|| {
            let body = move || run(of_thread, address, acceptor, report);
            std::thread::Builder::new().name("apiserver".to_owned()).spawn(body)
        })??;
        let address = listening
            .recv()
            .context("the server's thread has ended")?
            .with_context(|| format!("starting a fake API server on {address} in {}", netns.name()))?;
        Ok(Self { shared, address, ca_pem, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The authority's certificate, if the server speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// A kubeconfig with the server's address and authority and the present token.
    pub fn kubeconfig(&self) -> String {
        let token = lock(&self.shared.token).clone();
        let user = token.map_or("{}".to_owned(), |token| format!("{{token: {}}}", Value::from(token)));
        self.kubeconfig_of(&user)
    }

    /// A kubeconfig that names a file with the token, as a pod's configuration does: whoever uses it should read
    /// it anew when it changes.
    pub fn kubeconfig_with_token_file(&self, file: &std::path::Path) -> String {
        self.kubeconfig_of(&format!("{{tokenFile: {}}}", Value::from(file.to_string_lossy())))
    }

    fn kubeconfig_of(&self, user: &str) -> String {
        let ca = self.ca_pem.as_ref().map_or(String::new(), |pem| {
            format!("    certificate-authority-data: {}\n", STANDARD.encode(pem))
        });
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\n\
             clusters:\n- name: fake\n  cluster:\n    server: {url}\n{ca}\
             users:\n- name: fake\n  user: {user}\n\
             contexts:\n- name: fake\n  context: {{cluster: fake, user: fake}}\n",
            url = self.url(),
        )
    }

    /// Asks for another token from now on; requests with the old one get 401.
    pub fn set_token(&self, token: Option<&str>) {
        *lock(&self.shared.token) = token.map(str::to_owned);
    }

    /// The newest version.
    pub fn resource_version(&self) -> u64 {
        self.shared.read(|store| store.version())
    }

    /// A Node as it is now.
    pub fn node(&self, name: &str) -> Option<Value> {
        let node = self.shared.read(|store| store.get(name).cloned())?;
        node.to_object().ok()
    }

    /// An annotation of a Node as it is now.
    pub fn annotation(&self, name: &str, key: &str) -> Option<String> {
        Some(self.node(name)?["metadata"]["annotations"][key].as_str()?.to_owned())
    }

    /// What was asked, and how much was answered, since the start or [`Self::reset_counts`].
    pub fn count(&self, verb: Verb) -> Count {
        self.shared.counters.of(verb)
    }

    /// Counts from zero, and forgets the writes.
    pub fn reset_counts(&self) {
        self.shared.counters.reset();
        lock(&self.shared.writes).clear();
    }

    /// All patches since the start or [`Self::reset_counts`].
    pub fn writes(&self) -> Vec<Write> {
        lock(&self.shared.writes).clone()
    }

    /// All Events that were posted.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.events).clone()
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.shared.watches()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.control.send_modify(|control| control.shutdown = true);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed where it happened.
            let _ = thread.join();
        }
    }
}

/// The thread: one runtime, until shutdown.
fn run(
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    report: mpsc::Sender<Result<SocketAddr>>,
) {
    let listen = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address))?;
        let bound = listener.local_addr()?;
        anyhow::Ok((runtime, listener, bound))
    };
    match listen() {
        Ok((runtime, listener, bound)) => {
            // The receiver waits for this.
            let _ = report.send(Ok(bound));
            runtime.block_on(serve::serve(shared, listener, bound, tls));
        }
        Err(error) => drop(report.send(Err(error))),
    }
}
