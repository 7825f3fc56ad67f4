//! What the test's thread and the server's thread share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::Options;
use super::counters::{Counters, Verb, Write};
use super::faults::{Failure, Stall};
use super::object::Node;
use super::patch::Patch;
use super::status::Refusal;
use super::store::Store;

/// Everything but the sockets.
#[derive(Debug)]
pub(super) struct Shared {
    pub options: Options,
    store: Mutex<Store>,
    /// The newest version: wakes the watches.
    pub version: watch::Sender<u64>,
    pub control: watch::Sender<Control>,
    pub failures: Mutex<Vec<Failure>>,
    pub token: Mutex<Option<String>>,
    pub counters: Counters,
    pub writes: Mutex<Vec<Write>>,
    pub events: Mutex<Vec<Value>>,
    watches: Mutex<Vec<mpsc::UnboundedSender<Order>>>,
}

/// How the server is to behave; it sees changes at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Control {
    /// The test is over.
    pub shutdown: bool,
    /// Not even listening.
    pub away: bool,
    pub stall: Option<Stall>,
    /// Too old a version is refused by the HTTP status, not in the stream.
    pub gone_as_status: bool,
    pub latency: Duration,
    /// Counts up: each connection ends when it changes.
    pub disconnects: u64,
    /// Each Node's kubelet writes its status so often.
    pub heartbeats: Option<Duration>,
}

/// What a test tells an open watch to do.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// End the response as at a timeout.
    End,
    /// Say 410 and end.
    Expire,
    /// Send this, whatever it is.
    Say(bytes::Bytes),
    /// Send this and cut the connection.
    Cut(bytes::Bytes),
}

impl Shared {
    pub fn new(options: Options) -> Arc<Self> {
        let store = Store::new(options.history);
        Arc::new(Self {
            version: watch::Sender::new(store.version()),
            store: Mutex::new(store),
            control: watch::Sender::new(Control::default()),
            failures: Mutex::default(),
            token: Mutex::new(options.token.clone()),
            counters: Counters::default(),
            writes: Mutex::default(),
            events: Mutex::default(),
            watches: Mutex::default(),
            options,
        })
    }

    /// Reads the store.
    pub fn read<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&lock(&self.store))
    }

    /// Changes the store, and wakes the watches if there is something new.
    pub fn write<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = lock(&self.store);
        let result = change(&mut store);
        let version = store.version();
        drop(store);
        self.version.send_if_modified(|known| std::mem::replace(known, version.max(*known)) < version);
        result
    }

    /// The kubelet of a Node writes its status.
    pub fn heartbeat(&self, name: &str) -> bool {
        self.write(|store| {
            let Some(node) = store.get(name) else { return false };
            store.put(node.at(store.next_version(), Timestamp::now()));
            true
        })
    }

    /// Applies a patch, and returns the Node as it is then and whether that is something new.
    pub fn patch(&self, patch: &Patch) -> Result<(Arc<Node>, bool), Refusal> {
        self.write(|store| {
            let node = store.get(patch.name).ok_or_else(|| patch.without_node())?.clone();
            let broken = |error: anyhow::Error| Refusal::bad_request(format!("{error:#}"));
            let before = node.to_object().map_err(broken)?;
            let after = patch.patched(&before)?;
            if after == before {
                return Ok((node, false));
            }
            let changed = Node::new(after, store.next_version(), node.heartbeat).map_err(broken)?;
            store.put(changed.clone());
            Ok((Arc::new(changed), true))
        })
    }

    /// The failure that a request meets, used up by one.
    pub fn failure(&self, verb: Verb) -> Option<Refusal> {
        let mut failures = lock(&self.failures);
        let index = failures.iter().position(|failure| failure.meets(verb))?;
        let refusal = failures[index].refusal();
        if failures[index].use_up() {
            failures.remove(index);
        }
        Some(refusal)
    }

    /// Adds a watch to those that orders go to.
    pub fn open_watch(&self) -> mpsc::UnboundedReceiver<Order> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut watches = lock(&self.watches);
        watches.retain(|watch| !watch.is_closed());
        watches.push(sender);
        receiver
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        lock(&self.watches).iter().filter(|watch| !watch.is_closed()).count()
    }

    /// Tells every open watch.
    pub fn order(&self, order: &Order) {
        for watch in lock(&self.watches).iter() {
            // One that has just closed needs no orders.
            let _ = watch.send(order.clone());
        }
    }
}

/// A panicking test is reported as it is, not as a poisoned lock in the server's thread.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
