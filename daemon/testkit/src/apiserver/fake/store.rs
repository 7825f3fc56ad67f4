//! What the server knows: Nodes in their present versions, and the history of how they came to be.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::object::{Form, Node};
use super::status::Refusal;

/// Where versions begin: nobody mistakes 0 (any version will do) or a small number for a current one.
const FIRST_VERSION: u64 = 1000;

/// How many lists may be under way in pages at once before the oldest expires.
const SNAPSHOTS: usize = 256;

/// How many of the newest events keep their text: watches are seldom further behind, and 65,536 texts of 3 KiB
/// would be 200 MiB. Older ones are written anew for who asks.
const ENCODED: usize = 1024;

/// All Nodes at one version, in the order of their names.
pub(super) type Snapshot = Arc<[Arc<Node>]>;

/// The Nodes and their history.
#[derive(Debug)]
pub(super) struct Store {
    nodes: BTreeMap<String, Arc<Node>>,
    version: u64,
    history: VecDeque<Arc<Event>>,
    /// How many events the history keeps.
    kept: usize,
    /// The version before the first kept event: a watch may begin here or later.
    oldest: u64,
    /// What pages of lists are cut from.
    snapshots: BTreeMap<u64, Snapshot>,
}

/// One change, encoded once for all who watch.
#[derive(Debug)]
pub(super) struct Event {
    kind: Kind,
    pub node: Arc<Node>,
    full: OnceLock<Bytes>,
    metadata: OnceLock<Bytes>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Event {
    pub fn new(kind: Kind, node: Arc<Node>) -> Self {
        Self { kind, node, full: OnceLock::new(), metadata: OnceLock::new() }
    }

    /// The line that a watch sends.
    pub fn line(&self, form: Form) -> Bytes {
        let cell = match form {
            Form::Full => &self.full,
            Form::Metadata => &self.metadata,
        };
        let encode = || {
            let kind = match self.kind {
                Kind::Added => "ADDED",
                Kind::Modified => "MODIFIED",
                Kind::Deleted => "DELETED",
            };
            let mut line = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
            self.node.write(&mut line, form, true);
            line.extend_from_slice(b"}\n");
            line.into()
        };
        cell.get_or_init(encode).clone()
    }
}

impl Store {
    /// An empty store that keeps `kept` events.
    pub fn new(kept: usize) -> Self {
        Self {
            nodes: BTreeMap::new(),
            version: FIRST_VERSION,
            history: VecDeque::new(),
            kept,
            oldest: FIRST_VERSION,
            snapshots: BTreeMap::new(),
        }
    }

    /// The version of the newest change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version that the next change gets.
    pub fn next_version(&self) -> u64 {
        self.version + 1
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The Node whose name follows `name`, beginning anew after the last.
    pub fn after(&self, name: &str) -> Option<&Arc<Node>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut later = self.nodes.range::<str, _>((Excluded(name), Unbounded));
        later.next().or_else(|| self.nodes.first_key_value()).map(|(_, node)| node)
    }

    /// Stores a Node; its version must be [`Self::next_version`].
    pub fn put(&mut self, node: Node) {
        let node = Arc::new(node);
        let before = self.nodes.insert(node.text.name.clone(), node.clone());
        let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
        self.record(Event::new(kind, node));
    }

    /// Deletes a Node. Watches see it as it last was, at the version of the deletion.
    pub fn delete(&mut self, name: &str) -> Option<Arc<Node>> {
        let node = self.nodes.remove(name)?;
        let last = node.at(self.next_version(), node.heartbeat);
        self.record(Event::new(Kind::Deleted, Arc::new(last)));
        Some(node)
    }

    fn record(&mut self, event: Event) {
        self.version = event.node.resource_version;
        self.history.push_back(Arc::new(event));
        if let Some(index) = self.history.len().checked_sub(ENCODED + 1) {
            let aged = &mut self.history[index];
            *aged = Arc::new(Event::new(aged.kind, aged.node.clone()));
        }
        while self.history.len() > self.kept {
            self.oldest = self.history.pop_front().map_or(self.version, |event| event.node.resource_version);
        }
    }

    /// Forgets the history and the snapshots: whoever is not up to date must list anew.
    pub fn compact(&mut self) {
        self.history.clear();
        self.snapshots.clear();
        self.oldest = self.version;
    }

    /// All events after `version`.
    pub fn since(&self, version: u64) -> Result<Vec<Arc<Event>>, Refusal> {
        if version < self.oldest {
            return Err(Refusal::expired(version, self.oldest));
        }
        let first = self.history.partition_point(|event| event.node.resource_version <= version);
        Ok(self.history.range(first..).cloned().collect())
    }

    /// The Nodes as they are now.
    pub fn snapshot(&self) -> Snapshot {
        self.nodes.values().cloned().collect()
    }

    /// Keeps a snapshot for the pages to come.
    pub fn keep(&mut self, version: u64, snapshot: Snapshot) {
        self.snapshots.insert(version, snapshot);
        while self.snapshots.len() > SNAPSHOTS {
            self.snapshots.pop_first();
        }
    }

    /// The snapshot of an earlier page.
    pub fn kept(&self, version: u64) -> Result<Snapshot, Refusal> {
        self.snapshots.get(&version).cloned().ok_or_else(Refusal::continue_expired)
    }
}
