//! What the server was asked and what it cost: the figures of a node's load on an API server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::Value;

use super::patch::PatchKind;

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// One page of whole Nodes.
    List,
    /// One page of their metadata.
    ListMetadata,
    /// One Node.
    Get,
    /// A watch of whole Nodes.
    Watch,
    /// A watch of their metadata.
    WatchMetadata,
    /// A change of a Node, of whatever kind.
    Patch,
    /// An Event.
    PostEvent,
    /// Health, version, and what the server does not know.
    Other,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::List,
        Self::ListMetadata,
        Self::Get,
        Self::Watch,
        Self::WatchMetadata,
        Self::Patch,
        Self::PostEvent,
        Self::Other,
    ];
}

/// Requests of one verb.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Answered or not, refused or not.
    pub requests: u64,
    /// Bytes of the responses' bodies, before TLS and without headers. Those of a watch count as they are sent.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: [AtomicU64; Verb::ALL.len()],
    bytes: [AtomicU64; Verb::ALL.len()],
}

impl Counters {
    pub fn request(&self, verb: Verb) {
        self.requests[verb as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn sent(&self, verb: Verb, bytes: usize) {
        self.bytes[verb as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn of(&self, verb: Verb) -> Count {
        Count {
            requests: self.requests[verb as usize].load(Ordering::Relaxed),
            bytes: self.bytes[verb as usize].load(Ordering::Relaxed),
        }
    }

    pub fn reset(&self) {
        for counter in self.requests.iter().chain(&self.bytes) {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// A patch that the server was sent.
#[derive(Debug, Clone)]
pub struct Write {
    /// When it was decided on.
    pub at: Instant,
    /// The Node's name.
    pub node: String,
    /// What kind of patch.
    pub kind: PatchKind,
    /// `fieldManager=`, or the client's name for itself.
    pub manager: String,
    /// `force=true`.
    pub force: bool,
    /// The patch.
    pub body: Value,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a write.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The Node has changed: its annotations after that.
    Changed(Value),
    /// The Node was like that already; it kept its version.
    Unchanged,
    /// Refused, with this HTTP status.
    Refused(u16),
}
