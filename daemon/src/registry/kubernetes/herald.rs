//! Tells happenings to the cluster, as Kubernetes Events on the Node they concern.
//!
//! Events are for people, so there are few: the same of the same node at most every ten minutes, and all together
//! at most ten at once and one a minute. What is left out stands in the log and in the metrics.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use rand_core::{OsRng, RngCore as _};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Shared;
use crate::happening::{Happening, Kind};

/// The same happening of the same node is told once in this time.
const SAME: Duration = Duration::from_secs(600);
/// So many at once …
const BURST: u32 = 10;
/// … and one more each time this has passed.
const REFILL: Duration = Duration::from_secs(60);

/// What concerns another node is seen by all nodes at once. It is told after a random time, longer in a large
/// cluster, under a name that all give it: whoever comes later finds that it has been told.
const SPREAD: Duration = Duration::from_millis(2);

/// The longest name and note (validation of `events.k8s.io/v1`, of DNS subdomains), in bytes.
const MAX_NAME: usize = 253;
const MAX_NOTE: usize = 1024;

/// Runs for as long as somebody tells.
pub async fn run(shared: Arc<Shared>, mut happenings: mpsc::Receiver<Happening>) {
    let mut limits = Limits::new(Instant::now());
    while let Some(happening) = happenings.recv().await {
        if limits.allow(&happening, Instant::now()) {
            tokio::spawn(tell(shared.clone(), happening));
        } else {
            shared.suppressed();
        }
    }
}

async fn tell(shared: Arc<Shared>, happening: Happening) {
    let others = shared.with(|store| store.len()) as u64;
    if happening.node.is_some() {
        let spread = SPREAD.as_millis() as u64 * others;
        sleep(Duration::from_millis(OsRng.next_u64() % spread.max(1))).await;
    }
    let subject = happening.node.as_ref().unwrap_or(&shared.node);
    // A file that holds no Node can be quarantined, too; there is nothing to hang an Event on.
    let Some(uid) = shared.with(|store| store.uid(subject).map(str::to_owned)) else { return };
    let event = event(&shared.node, subject, uid, &happening, Timestamp::now());
    if let Err(error) = shared.api.create(&event).await {
        tracing::warn!(event = happening.kind.reason(), "the Event cannot be told: {error:#}");
    }
}

fn event(own: &str, subject: &str, uid: String, happening: &Happening, now: Timestamp) -> Event {
    let Happening { kind, note, .. } = happening;
    let mut hasher = DefaultHasher::new();
    (kind.reason(), note).hash(&mut hasher);
    if happening.node.is_none() {
        (own, now.as_nanosecond()).hash(&mut hasher);
    }
    let suffix = format!(".warren-{:016x}", hasher.finish());
    let name: String = subject.chars().take(MAX_NAME - suffix.len()).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(name + &suffix),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some("warren.internal/warrend".into()),
        reporting_instance: Some(own.chars().take(128).collect()),
        action: Some(kind.action().into()),
        reason: Some(kind.reason().into()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(subject.to_owned()),
            uid: Some(uid),
            ..ObjectReference::default()
        }),
        note: Some(truncated(note)),
        type_: Some(if kind.is_warning() { "Warning" } else { "Normal" }.into()),
        ..Event::default()
    }
}

fn truncated(note: &str) -> String {
    let end = (0..=note.len().min(MAX_NOTE)).rev().find(|end| note.is_char_boundary(*end));
    note[..end.unwrap_or_default()].to_owned()
}

/// What was told when.
struct Limits {
    told: HashMap<(Kind, Option<String>), Instant>,
    left: u32,
    refilled: Instant,
}

impl Limits {
    fn new(now: Instant) -> Self {
        Self { told: HashMap::new(), left: BURST, refilled: now }
    }

    fn allow(&mut self, happening: &Happening, now: Instant) -> bool {
        let refills = (now.duration_since(self.refilled).as_secs() / REFILL.as_secs()) as u32;
        self.left = self.left.saturating_add(refills).min(BURST);
        self.refilled += REFILL * refills;
        self.told.retain(|_, at| now.duration_since(*at) < SAME);
        let key = (happening.kind, happening.node.clone());
        if self.left == 0 || self.told.contains_key(&key) {
            return false;
        }
        self.left -= 1;
        self.told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarantined(node: &str) -> Happening {
        Happening { kind: Kind::NodeQuarantined, node: Some(node.into()), note: "why".into() }
    }

    #[test]
    fn a_flood_is_cut_short_and_the_same_is_told_once() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        assert!(limits.allow(&quarantined("a"), start));
        assert!(!limits.allow(&quarantined("a"), start + SAME / 2), "the same");
        let others =
            (0..50).filter(|n| limits.allow(&quarantined(&format!("n{n}")), start + SAME / 2)).count();
        assert_eq!(others as u32, BURST);
        assert!(!limits.allow(&quarantined("z"), start + SAME / 2 + REFILL / 2));
        assert!(limits.allow(&quarantined("z"), start + SAME / 2 + REFILL));
        assert!(limits.allow(&quarantined("a"), start + SAME * 2), "again, after a while");
    }

    #[test]
    fn all_nodes_give_what_concerns_another_one_name() {
        let at = |nanos| Timestamp::from_nanosecond(nanos).unwrap();
        let name = |own, happening: &Happening, nanos| {
            event(own, happening.node.as_deref().unwrap_or(own), "u".into(), happening, at(nanos))
                .metadata
                .name
        };
        let other = quarantined(&"n".repeat(253));
        assert_eq!(name("a", &other, 1), name("b", &other, 2));
        assert_eq!(name("a", &other, 1).unwrap().len(), MAX_NAME);
        let own = Happening { kind: Kind::ClearTextStopped, node: None, note: "7 packets".into() };
        assert_ne!(name("a", &own, 1), name("a", &own, 2));
        assert_eq!(truncated(&"ü".repeat(600)).len(), MAX_NOTE);
    }
}
