//! The registry in Kubernetes: announcements are annotations on Nodes.
//!
//! ```text
//!   API server ──list, watch, get──► feed ──► store ──► records ──► plan
//!        ▲                                      │
//!        ├──patch own Node── publisher ◄────────┴── wish (announcement, readiness)
//!        └──create Events─── herald ◄── happenings
//! ```
//!
//! Two tasks and a thread talk to the API server, so that however slow it is, the agent's loop never waits for it. None
//! of them decides who is believed: that is `warren-core`'s.

mod api;
mod client;
mod events;
mod feed;
mod herald;
mod list;
mod publisher;
mod store;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use warren_api::status::RegistryStatus;
use warren_core::Record;

use crate::happening::Happening;
use api::Api;
pub use feed::SILENCE;
use publisher::Wish;
use store::Store;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(5);

/// How many Nodes are asked for at once.
const ASKING: usize = 8;

/// Between attempts: from half a second to 10 s, twice as long each time, with up to as much again of jitter, so
/// that 5,000 nodes do not come back to an API server at once.
fn backoff() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(10))
        .with_jitter()
        .without_max_times()
        .build()
}

/// The registry, as the agent sees it.
pub struct KubernetesRegistry {
    shared: Arc<Shared>,
    wish: watch::Sender<Wish>,
    url: String,
    /// Ends the feed's thread when this is dropped.
    _feed: oneshot::Sender<()>,
    server: Option<IpAddr>,
}

/// What the tasks have in common.
pub struct Shared {
    node: String,
    api: Api,
    store: Mutex<Store>,
    contact: Mutex<Contact>,
    /// For the agent: something changed.
    changed: Arc<Notify>,
    /// For the publisher: the own Node may have changed.
    own_changed: Notify,
    places: Semaphore,
    /// The runtime of all tasks but the feed.
    tasks: Handle,
    happenings: mpsc::Sender<Happening>,
    suppressed: AtomicU64,
    /// How long a watch may be silent.
    silence: Duration,
}

/// How it stands with the API server.
#[derive(Debug)]
struct Contact {
    /// When something last came from it.
    last: Instant,
    /// Why nothing comes; `None` while something does.
    trouble: Option<String>,
    /// Why Nodes cannot be read one by one, while the watch tells that they changed.
    unread: BTreeMap<String, String>,
    /// Why the own Node cannot be written.
    unwritten: Option<String>,
}

impl KubernetesRegistry {
    /// The registry of the cluster this runs in, or of a kubeconfig, seen from the Node `node`; `changed` hears of
    /// changes. A watch that is silent for longer than `silence` is given up. Does not wait for the API server.
    pub async fn open(
        kubeconfig: Option<&Path>,
        node: String,
        changed: Arc<Notify>,
        silence: Duration,
    ) -> anyhow::Result<Self> {
        let mut config = configuration(kubeconfig).await?;
        config.connect_timeout = Some(CONNECT);
        // A half-open connection must not keep a list waiting for ever; a watch that is silent ends before.
        config.read_timeout = Some(silence + CONNECT);
        config.reset_reader_on_write = true;
        let url = config.cluster_url.to_string();
        let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let client = client::client(&config)?;

        let (tell, happenings) = mpsc::channel(64);
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(node.clone())),
            node,
            api: Api::new(client),
            contact: Mutex::new(Contact {
                last: Instant::now(),
                trouble: Some("not listed yet".to_owned()),
                unread: BTreeMap::new(),
                unwritten: None,
            }),
            changed,
            own_changed: Notify::new(),
            places: Semaphore::new(ASKING),
            tasks: Handle::current(),
            happenings: tell,
            suppressed: AtomicU64::new(0),
            silence,
        });
        let (wish, wishes) = watch::channel(Wish::default());
        let feed = feed::start(shared.clone(), config)?;
        tokio::spawn(publisher::run(shared.clone(), wishes));
        tokio::spawn(herald::run(shared.clone(), happenings));
        Ok(Self { shared, wish, url, _feed: feed, server: host.parse().ok() })
    }

    /// All Nodes, as last heard. An error only before the first list.
    pub fn read(&self) -> anyhow::Result<Vec<Record>> {
        self.shared.with(|store| store.records()).with_context(|| {
            let trouble = self.shared.contact().trouble.clone().unwrap_or_default();
            format!("the Nodes are not known yet: {}: {trouble}", self.url)
        })
    }

    /// Has these annotations stand on the own Node, and no others of those that Warren publishes.
    pub fn publish(&self, annotations: &[(&str, String)]) {
        let annotations: BTreeMap<String, String> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.wish.send_if_modified(|wish| {
            let new = wish.annotations.as_ref() != Some(&annotations);
            wish.annotations = Some(annotations);
            new
        });
    }

    /// Says whether the node's traffic is safe.
    pub fn ready(&self, ready: bool) {
        self.wish.send_if_modified(|wish| std::mem::replace(&mut wish.ready, ready) != ready);
    }

    /// Tells the cluster, within the limits of the herald.
    pub fn tell(&self, happening: Happening) {
        self.shared.tell(happening);
    }

    /// Where the API server is, where the configuration gives an address. A name is not asked for: who answers for it
    /// would decide what is guarded.
    pub fn server(&self) -> Option<IpAddr> {
        self.server
    }

    /// How it stands with the API server.
    pub fn status(&self) -> RegistryStatus {
        let contact = self.shared.contact();
        let trouble = contact.trouble.clone().or_else(|| contact.unread.values().next().cloned());
        RegistryStatus {
            source: self.url.clone(),
            connected: trouble.is_none(),
            last_contact_age: contact.last.elapsed().as_secs_f64(),
            trouble,
            unwritten: contact.unwritten.clone(),
            requests: self
                .shared
                .api
                .requests
                .counts()
                .map(|(verb, count)| (verb.to_owned(), count))
                .into_iter()
                .collect(),
            suppressed_events: self.shared.suppressed.load(Ordering::Relaxed),
        }
    }
}

async fn configuration(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let Some(path) = kubeconfig else {
        return Config::incluster().context(
            "this is no pod with a ServiceAccount token; name a kubeconfig with --registry kubernetes:PATH",
        );
    };
    let failed = || format!("the kubeconfig {} cannot be used", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(failed)
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        work(&mut lock(&self.store))
    }

    fn contact(&self) -> std::sync::MutexGuard<'_, Contact> {
        lock(&self.contact)
    }

    fn notify(&self, changed: bool) {
        if changed {
            self.changed.notify_one();
            self.own_changed.notify_one();
        }
    }

    fn in_contact(&self) {
        let mut contact = self.contact();
        if contact.trouble.take().is_some() {
            let seconds = contact.last.elapsed().as_secs();
            tracing::info!("in contact with the API server, after {seconds} s");
        }
        contact.last = Instant::now();
    }

    fn lost_contact(&self, error: &anyhow::Error) {
        let trouble = explained(error);
        let mut contact = self.contact();
        if contact.trouble.as_ref() != Some(&trouble) {
            tracing::warn!("no contact with the API server; what is known of the nodes holds: {trouble}");
        }
        contact.trouble = Some(trouble);
    }

    /// The feed broke off, by an error in this program. What was read last may be half of something.
    fn broke(&self, why: &dyn std::fmt::Display) {
        self.lost_contact(&anyhow::anyhow!("the feed broke off and begins anew: {why}"));
        self.with(Store::forget_version);
    }

    /// That a Node cannot be read, or need not be any more.
    fn unread(&self, node: &str, error: Option<&anyhow::Error>) {
        let mut contact = self.contact();
        let quiet = contact.unread.is_empty();
        match error {
            Some(error) => {
                let trouble = format!("the Node {node:?} changed and cannot be read: {}", explained(error));
                if quiet {
                    tracing::warn!("what changed is not believed: {trouble}");
                }
                contact.unread.insert(node.to_owned(), trouble);
            }
            None => {
                contact.unread.remove(node);
                if !quiet && contact.unread.is_empty() {
                    tracing::info!("the Nodes that changed are read");
                }
            }
        }
    }

    /// Whether the own Node could be written.
    fn wrote(&self, result: Result<(), &anyhow::Error>) {
        let trouble = result.err().map(|error| format!("this Node cannot be written: {}", explained(error)));
        let mut contact = self.contact();
        if contact.unwritten != trouble {
            // The agent says it, as any other problem.
            self.changed.notify_one();
        }
        contact.unwritten = trouble;
    }

    fn tell(&self, happening: Happening) {
        if self.happenings.try_send(happening).is_err() {
            self.suppressed();
        }
    }

    fn suppressed(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }
}

/// The error, and what to do about it where that is known.
fn explained(error: &anyhow::Error) -> String {
    let hint = match api::code(error) {
        Some(401) => "; is the token of the ServiceAccount valid?",
        Some(403) => "; is the ClusterRole warren-daemon bound to this ServiceAccount?",
        _ => "",
    };
    format!("{error:#}{hint}")
}

/// A panic while holding the lock leaves a state that is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_attempts_grow_to_a_bound_and_differ_between_nodes() {
        let nodes: Vec<Vec<Duration>> = (0..50).map(|_| backoff().take(20).collect()).collect();
        for (attempt, shortest) in [(0, 500), (1, 1000), (2, 2000), (10, 10_000), (19, 10_000)] {
            let shortest = Duration::from_millis(shortest);
            let mut waits: Vec<Duration> = nodes.iter().map(|waits| waits[attempt]).collect();
            waits.sort_unstable();
            assert!(waits[0] >= shortest && waits[49] <= shortest * 2, "attempt {attempt}: {waits:?}");
            assert!(waits[49] - waits[0] > shortest / 2, "attempt {attempt}: {waits:?}");
        }
    }
}
