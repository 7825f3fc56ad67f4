//! Where on a Node the announcement stands.
//!
//! The prefix is a domain nobody can own (`.internal` is reserved for private use, ICANN resolution
//! 2024.07.29.06), so the annotations can never collide with somebody else's.

/// What all of Warren's annotations, labels and taints begin with.
pub const PREFIX: &str = "warren.internal/";
/// The whole announcement, one JSON document: the only annotation that peers obey.
pub const ANNOUNCEMENT: &str = "warren.internal/announcement";
/// The public key of the newest epoch, for `kubectl get`.
pub const PUBLIC_KEY: &str = "warren.internal/public-key";
/// The newest epoch, for `kubectl get`.
pub const EPOCH: &str = "warren.internal/epoch";
/// The backend, for `kubectl get`.
pub const BACKEND: &str = "warren.internal/backend";

/// An operator's request: nobody is to obey the Node it stands on; its value says why.
pub const QUARANTINE: &str = "warren.internal/quarantine";
/// The taint with which a node may start, so that no pod runs there before its traffic is safe.
pub const NOT_READY: &str = "warren.internal/not-ready";

/// The label that, with the value `false`, leaves a node's own programs out of `--encrypt-host`.
pub const ENCRYPT_HOST: &str = "warren.internal/encrypt-host";

/// All annotations that a daemon writes.
pub const PUBLISHED: [&str; 4] = [ANNOUNCEMENT, PUBLIC_KEY, EPOCH, BACKEND];

use crate::Announcement;

/// The annotations that publish `announcement`, as (name, value).
pub fn publish(announcement: &Announcement) -> Vec<(&'static str, String)> {
    let mut annotations = vec![(ANNOUNCEMENT, announcement.to_json())];
    if let Some(newest) = announcement.epochs.iter().max_by_key(|key| key.epoch) {
        annotations.push((PUBLIC_KEY, newest.public_key.to_string()));
        annotations.push((EPOCH, newest.epoch.to_string()));
    }
    annotations.push((BACKEND, announcement.backend.to_string()));
    annotations
}
