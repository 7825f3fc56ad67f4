//! What is known of all Nodes, and what has to be asked: a pure state machine, fed with what the API server
//! sends.
//!
//! ```text
//!   full list ──► listed ──┐
//!   watch ──► seen, deleted ┼─► records for the plan
//!   metadata list ─► relisted │
//!   GET ──► got ───────────┘◄── Effect: ask for this Node
//! ```
//!
//! The watch carries metadata alone, so the announcement is seen at once, but not what Kubernetes gave the node.
//! Whatever an announcement is checked against (pod CIDRs, addresses) is therefore asked for whenever the
//! announcement is new, and the new announcement is believed with the answer, not before. What needs no check
//! (a node is gone, took its announcement back, was quarantined) holds at once.
//!
//! What is known is forgotten only when the API server says so: nothing here has a time-out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_api::annotations::{ANNOUNCEMENT, NOT_READY, QUARANTINE};
use warren_api::node::{Metadata, Node};
use warren_core::{NodeRecord, Record};

/// A Node without pod CIDRs or addresses is asked for again when it changes: Kubernetes gives them a moment after
/// the Node appears (addresses from a cloud's controller, where there is one), and the metadata does not tell. First after this long, then each time twice as
/// long, up to the second figure: where nodes never get any, that must not cost a request a heartbeat.
const POOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The own Node is asked for again when it changes, so that taints and addresses are known, but not more often.
/// Heartbeats come every 10 s to 5 min.
const OWN: Duration = Duration::from_secs(30);

/// All Nodes.
#[derive(Debug)]
pub struct Store {
    own: String,
    own_node: Option<OwnNode>,
    /// The version at which the own Node was last seen, or seen to go.
    own_version: u64,
    nodes: BTreeMap<String, Entry>,
    /// Nodes that are asked for: how new the answer must be, and from when on.
    asking: BTreeMap<String, (u64, Instant)>,
    /// Where the watch goes on; empty where all have to be listed first.
    version: String,
    /// Whether they ever were. From then on what is known holds.
    listed: bool,
}

/// What the own Node says beside what all Nodes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnNode {
    /// Its UID.
    pub uid: String,
    /// Warren's annotations on it.
    pub annotations: BTreeMap<String, String>,
    /// Where among its taints the startup taint stands.
    pub tainted: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    record: Arc<NodeRecord>,
    /// The announcement as it stands on the Node.
    text: Option<String>,
    /// When it may be asked for again only because it changed, and how long after that.
    again: (Instant, Duration),
}

/// What follows from an input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The records are not what they were.
    pub changed: bool,
    /// This Node is to be asked for, not before this time; then [`Store::got`] or [`Store::gone`].
    pub ask: Option<Instant>,
}

impl Entry {
    /// Takes over from the metadata what needs no check; says whether that changed anything.
    fn see(&mut self, metadata: &Metadata) -> bool {
        let quarantine = metadata.annotations.get(QUARANTINE);
        let control_plane = metadata.is_control_plane();
        let host_left_out = metadata.is_host_left_out();
        let announces = metadata.annotations.contains_key(ANNOUNCEMENT);
        if !announces {
            self.text = None;
        }
        // Hundreds of heartbeats a second come here to say nothing new: they must not cost a copy.
        let changed = self.record.quarantine.as_ref() != quarantine
            || self.record.control_plane != control_plane
            || self.record.host_left_out != host_left_out
            || self.record.announcement.is_some() && !announces;
        if changed {
            let record = Arc::make_mut(&mut self.record);
            record.quarantine = quarantine.cloned();
            record.control_plane = control_plane;
            record.host_left_out = host_left_out;
            record.announcement = record.announcement.take().filter(|_| announces);
        }
        changed
    }
}

impl Store {
    /// Nothing is known yet.
    pub fn new(own: String) -> Self {
        Self {
            own,
            own_node: None,
            own_version: 0,
            nodes: BTreeMap::new(),
            asking: BTreeMap::new(),
            version: String::new(),
            listed: false,
        }
    }

    /// All Nodes for the plan; `None` before the first list.
    pub fn records(&self) -> Option<Vec<Record>> {
        let records = || self.nodes.values().map(|entry| Record::Node(entry.record.clone())).collect();
        self.listed.then(records)
    }

    /// The own Node, if there is one.
    pub fn own(&self) -> Option<&OwnNode> {
        self.own_node.as_ref()
    }

    /// Whether no Node is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The UID of a Node, if it is known.
    pub fn uid(&self, name: &str) -> Option<&str> {
        self.nodes.get(name).map(|entry| entry.record.uid.as_str())
    }

    /// The names of the nodes that announce themselves: Warren runs there.
    pub fn announcing(&self) -> impl Iterator<Item = &str> {
        let announces = |entry: &Entry| matches!(entry.record.announcement, Some(Ok(_)));
        self.nodes.iter().filter(move |(_, entry)| announces(entry)).map(|(name, _)| name.as_str())
    }

    /// Where the watch goes on; empty if all Nodes have to be listed first.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The server knows nothing of the version any more, not even that it is old: all have to be listed.
    pub fn forget_version(&mut self) {
        self.version.clear();
    }

    /// All Nodes, whole.
    pub fn listed(&mut self, nodes: impl IntoIterator<Item = Node>, version: String, now: Instant) {
        self.nodes.clear();
        self.asking.clear();
        self.own_node = None;
        self.own_version = 0;
        for node in nodes {
            self.put(&node, now);
        }
        self.version = version;
        self.listed = true;
    }

    /// The metadata of all Nodes; returns which are to be asked for, and whether anything changed.
    pub fn relisted(&mut self, all: Vec<Metadata>, version: String, now: Instant) -> (bool, Vec<Metadata>) {
        let names: BTreeSet<&str> = all.iter().map(|metadata| metadata.name.as_str()).collect();
        let gone: Vec<String> =
            self.nodes.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        let mut changed = !gone.is_empty();
        gone.iter().for_each(|name| self.remove(name));
        let mut ask = Vec::new();
        for metadata in all {
            let effect = self.seen(&metadata, now);
            changed |= effect.changed;
            if effect.ask.is_some() {
                ask.push(metadata);
            }
        }
        self.version = version;
        (changed, ask)
    }

    /// The watch has come this far without anything else to say. False if it had come further before.
    #[must_use]
    pub fn bookmark(&mut self, version: String) -> bool {
        let onwards = number(&version) >= number(&self.version);
        self.version = version;
        onwards
    }

    /// The watch shows that a Node is there, or changed.
    pub fn seen(&mut self, metadata: &Metadata, now: Instant) -> Effect {
        self.version.clone_from(&metadata.resource_version);
        let name = &metadata.name;
        let announcement = metadata.annotations.get(ANNOUNCEMENT);
        self.see_version(metadata);
        let own_changed = self.see_own(metadata);
        let Some(entry) = self.nodes.get_mut(name).filter(|entry| entry.record.uid == metadata.uid) else {
            return Effect { changed: own_changed, ask: self.ask(metadata, now) };
        };
        let changed = entry.see(metadata);
        // An answer on its way may be older than this.
        if let Some((wanted, _)) = self.asking.get_mut(name).filter(|_| changed) {
            *wanted = number(&metadata.resource_version);
        }
        let ask = if announcement.is_some() && entry.text.as_ref() != announcement {
            self.ask(metadata, now)
        } else if *name == self.own || poor(&entry.record) {
            let at = entry.again.0.max(now);
            self.ask(metadata, at)
        } else {
            None
        };
        Effect { changed: changed || own_changed, ask }
    }

    /// One question at a time: the answer to one that is under way is held against the newest wish.
    fn ask(&mut self, metadata: &Metadata, at: Instant) -> Option<Instant> {
        let wanted = number(&metadata.resource_version);
        match self.asking.get_mut(&metadata.name) {
            Some((newest, under_way)) if *under_way <= at => {
                *newest = wanted;
                None
            }
            _ => {
                self.asking.insert(metadata.name.clone(), (wanted, at));
                Some(at)
            }
        }
    }

    /// The watch shows that a Node is gone.
    pub fn deleted(&mut self, metadata: &Metadata) -> Effect {
        self.version.clone_from(&metadata.resource_version);
        self.see_version(metadata);
        let name = &metadata.name;
        // A list or an answer may be ahead of the watch and show its successor already.
        let known = self.nodes.get(name).is_some_and(|entry| entry.record.uid == metadata.uid);
        if known || !self.nodes.contains_key(name) {
            self.remove(name);
        }
        Effect { changed: known, ask: None }
    }

    /// How new an answer about a Node must be; `None` if the question is moot.
    pub fn wanted(&self, name: &str) -> Option<u64> {
        self.asking.get(name).map(|(wanted, _)| *wanted)
    }

    /// The answer to a question. One that is too old, or that nobody waits for, changes nothing: ask again while
    /// [`Store::wanted`] says so.
    pub fn got(&mut self, node: &Node, now: Instant) -> bool {
        let name = &node.metadata.name;
        match self.asking.get(name) {
            Some((wanted, _)) if number(&node.metadata.resource_version) >= *wanted => {}
            _ => return false,
        }
        self.asking.remove(name);
        self.put(node, now)
    }

    /// The answer is that there is no such Node. Its deletion is on its way.
    pub fn gone(&mut self, name: &str) {
        self.asking.remove(name);
    }

    /// The own Node as it stands after it was written; says whether anything changed. The watch may have seen more
    /// since, even its end.
    pub fn written(&mut self, node: &Node, now: Instant) -> bool {
        if number(&node.metadata.resource_version) < self.own_version {
            return false;
        }
        let newer = |(wanted, _): &(u64, Instant)| number(&node.metadata.resource_version) >= *wanted;
        if self.asking.get(&node.metadata.name).is_some_and(newer) {
            self.asking.remove(&node.metadata.name);
        }
        self.put(node, now)
    }

    fn put(&mut self, node: &Node, now: Instant) -> bool {
        let Metadata { name, uid, annotations, .. } = &node.metadata;
        let mut changed = false;
        self.see_version(&node.metadata);
        if *name == self.own {
            let taints = node.spec.taints.iter().enumerate();
            let tainted =
                taints.filter(|(_, taint)| taint.key == NOT_READY).map(|(place, _)| place).collect();
            let own = Some(OwnNode { uid: uid.clone(), annotations: annotations.clone(), tainted });
            changed = self.own_node != own;
            self.own_node = own;
        }
        let record = NodeRecord::from(node);
        let before = self.nodes.get(name);
        let wait = match before {
            _ if !poor(&record) => OWN,
            Some(before) if before.record.uid == *uid => (before.again.1 * 2).min(POOR.1),
            _ => POOR.0,
        };
        changed |= before.is_none_or(|before| *before.record != record);
        let text = annotations.get(ANNOUNCEMENT).cloned();
        self.nodes.insert(name.clone(), Entry { record: record.into(), text, again: (now + wait, wait) });
        changed
    }

    fn remove(&mut self, name: &str) {
        self.nodes.remove(name);
        self.asking.remove(name);
        if *name == self.own {
            self.own_node = None;
        }
    }

    fn see_version(&mut self, metadata: &Metadata) {
        if metadata.name == self.own {
            self.own_version = number(&metadata.resource_version);
        }
    }

    fn see_own(&mut self, metadata: &Metadata) -> bool {
        let Some(own) = &mut self.own_node else { return false };
        let same =
            metadata.name != self.own || own.uid != metadata.uid || own.annotations == metadata.annotations;
        if !same {
            own.annotations.clone_from(&metadata.annotations);
        }
        !same
    }
}

/// Whether a Node lacks what Kubernetes gives it.
fn poor(record: &NodeRecord) -> bool {
    record.pod_cidrs.is_empty() || record.addresses.is_empty()
}

/// A version as a number. Kubernetes calls it opaque, but promises since 1.35 what has always been so: of one
/// resource, a greater number is newer. Anything else counts as oldest.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
