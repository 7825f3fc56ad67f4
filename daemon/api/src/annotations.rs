//! Where on a Node the announcement stands.
//!
//! The prefix is a domain nobody can own (`.internal` is reserved for private use, ICANN resolution
//! 2024.07.29.06), so the annotations can never collide with somebody else's.

/// The whole announcement, one JSON document: the only annotation that peers obey.
pub const ANNOUNCEMENT: &str = "warren.internal/announcement";
/// The public key of the newest epoch, for `kubectl get`.
pub const PUBLIC_KEY: &str = "warren.internal/public-key";
/// The newest epoch, for `kubectl get`.
pub const EPOCH: &str = "warren.internal/epoch";
/// The backend, for `kubectl get`.
pub const BACKEND: &str = "warren.internal/backend";

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
