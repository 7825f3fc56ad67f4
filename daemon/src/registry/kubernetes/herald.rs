//! Tells happenings to the cluster, as Kubernetes Events on the Node they concern.
//!
//! Events are for people, so there are few: the same of the same node at most every ten minutes, and all together
//! at most ten at once and one a minute. What is left out stands in the log and in the metrics. What cannot be told
//! while the server is away is told when it is back.
//!
//! What concerns another node is seen by all nodes at once. Only a few of them tell it, one after the other, under a name
//! that all give it: whoever comes later finds that it has been told.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::{Shared, api, backoff};
use crate::happening::{Happening, Kind};

/// The same happening of the same node is told once in this time.
const SAME: Duration = Duration::from_secs(600);
/// So many at once …
const BURST: u32 = 10;
/// … and one more each time this has passed.
const REFILL: Duration = Duration::from_secs(60);

/// How many nodes tell what all see: so many that it is told although some of them are off, or do not see it. The first
/// does at once, the last after two minutes.
const TELLERS: u32 = 12;

/// How much is kept that could not be told yet; with the limits above, an hour's.
const KEPT: usize = 64;

/// The longest name and note (validation of `events.k8s.io/v1`, of DNS subdomains), in bytes.
const MAX_NAME: usize = 253;
const MAX_NOTE: usize = 1024;

/// What is to be told, and when.
struct Pending {
    happening: Happening,
    at: Timestamp,
    due: Instant,
}

/// Runs for as long as somebody tells.
pub async fn run(shared: Arc<Shared>, mut happenings: mpsc::Receiver<Happening>) {
    let mut limits = Limits::new(Instant::now());
    let mut pending: Vec<Pending> = Vec::new();
    let mut waits = backoff();
    let mut rested = Instant::now();
    loop {
        let next = (0..pending.len()).min_by_key(|place| pending[*place].due);
        let due = next.map(|place| pending[place].due.max(rested));
        tokio::select! {
            happening = happenings.recv() => {
                let Some(happening) = happening else { return };
                let Some(wait) = turn(&shared, &happening) else { continue };
                let now = Instant::now();
                if pending.len() < KEPT && limits.allow(&happening, now) {
                    pending.push(Pending { happening, at: Timestamp::now(), due: now + wait });
                } else {
                    shared.suppressed();
                }
            }
            () = sleep_until(due.unwrap_or(rested).into()), if due.is_some() => {
                let Some(it) = next.map(|place| pending.swap_remove(place)) else { continue };
                match tell(&shared, &it).await {
                    Ok(()) => waits = backoff(),
                    Err(error) if api::is_passing(&error) => {
                        tracing::debug!("an Event is told later: {error:#}");
                        pending.push(it);
                        rested = Instant::now() + waits.next().unwrap_or_default();
                    }
                    Err(error) => {
                        let event = it.happening.kind.reason();
                        tracing::warn!(event, "the Event cannot be told: {error:#}");
                    }
                }
            }
        }
    }
}

/// How long this node waits before it tells; `None` if that is left to others.
fn turn(shared: &Shared, happening: &Happening) -> Option<Duration> {
    let Some(subject) = &happening.node else { return Some(Duration::ZERO) };
    let place = shared.with(|store| place(&shared.node, subject, happening.kind, store.announcing()));
    // Who comes later has time to find that it has been told.
    (place < TELLERS).then(|| Duration::from_secs(u64::from(place * place)))
}

/// Where this node stands in the row of those that tell something of `subject`. All nodes make the same row (rendezvous
/// hashing), another for each subject.
fn place<'a>(own: &str, subject: &str, kind: Kind, nodes: impl Iterator<Item = &'a str>) -> u32 {
    let weight = |name: &str| {
        let mut hasher = DefaultHasher::new();
        (kind.reason(), subject, name).hash(&mut hasher);
        hasher.finish()
    };
    let own_weight = weight(own);
    // Of what it is accused, the subject says nothing.
    let before = nodes.filter(|name| *name != own && *name != subject && weight(name) < own_weight);
    before.take(TELLERS as usize).count() as u32
}

async fn tell(shared: &Shared, Pending { happening, at, .. }: &Pending) -> anyhow::Result<()> {
    let subject = happening.node.as_ref().unwrap_or(&shared.node);
    let Some(uid) = shared.with(|store| store.uid(subject).map(str::to_owned)) else {
        // A node that is gone by now needs no Event; the own Node may not be known yet.
        return if happening.node.is_some() { Ok(()) } else { None.context("the own Node is not known") };
    };
    shared.api.create(&event(&shared.node, subject, uid, happening, *at)).await
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
    fn few_nodes_tell_what_all_see() {
        let nodes: Vec<String> = (0..5000).map(|number| format!("node-{number}")).collect();
        let mut first = std::collections::BTreeSet::new();
        for subject in &nodes[..20] {
            let names = || nodes.iter().map(String::as_str);
            let places = names()
                .filter(|name| name != subject)
                .map(|name| (place(name, subject, Kind::NodeQuarantined, names()), name));
            let mut tellers: Vec<_> = places.filter(|(place, _)| *place < TELLERS).collect();
            tellers.sort_unstable();
            let row: Vec<u32> = tellers.iter().map(|(place, _)| *place).collect();
            assert_eq!(row, (0..TELLERS).collect::<Vec<_>>(), "one for each place");
            first.insert(tellers[0].1);
        }
        assert!(first.len() > 15, "not always the same: {first:?}");
        // Alone, or among nodes without Warren, it is this node's to tell.
        assert_eq!(place("a", "b", Kind::NodeQuarantined, ["a", "b"].into_iter()), 0);
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
