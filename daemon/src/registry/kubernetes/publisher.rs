//! Keeps the own Node as the daemon wants it: the announcement on it, the startup taint off it.
//!
//! Level-triggered: whenever the wish or the Node changes, the two are compared, and only a difference is
//! written. So a restart writes nothing, and what somebody removes or garbles is written again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use warren_api::Announcement;
use warren_api::annotations::{ANNOUNCEMENT, PUBLISHED};
use warren_api::node::Node;

use super::store::OwnNode;
use super::{Shared, api, backoff};
use crate::happening;

/// Somebody who overwrites the announcement again and again is not kept company: each further write within five
/// minutes waits twice as long as the one before, from 1 s up to 64 s.
const MEMORY: Duration = Duration::from_secs(300);

/// What the own Node should be like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Warren's annotations; `None` while it is not known what to say.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Whether pods may run: the startup taint is no longer needed.
    pub ready: bool,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
enum Write {
    Announcement(BTreeMap<String, String>),
    /// Annotations that server-side apply does not take away, because it did not put them there.
    Leftovers(Vec<String>),
    Untaint(Vec<usize>),
}

/// Runs for as long as the daemon does.
pub async fn run(shared: Arc<Shared>, mut wish: watch::Receiver<Wish>) {
    let mut waits = backoff();
    let mut recent = VecDeque::new();
    let mut uid = String::new();
    loop {
        let wanted = wish.borrow_and_update().clone();
        let own = shared.with(|store| store.own().cloned());
        if let Some(own) = own.as_ref().filter(|own| own.uid != uid) {
            // What was written before is gone with the Node that it was written to.
            recent.clear();
            uid.clone_from(&own.uid);
        }
        let Some((own, write)) = own.and_then(|own| next_write(&wanted, &own).map(|write| (own, write)))
        else {
            waits = backoff();
            tokio::select! {
                changed = wish.changed() => if changed.is_err() { return },
                () = shared.own_changed.notified() => {}
            }
            continue;
        };
        let pause = pace(&mut recent, Instant::now());
        if !pause.is_zero() {
            // What was to be written may be out of date by then.
            sleep(pause).await;
            let now = shared.with(|store| store.own().cloned());
            if now.as_ref() != Some(&own) || *wish.borrow() != wanted {
                continue;
            }
        }
        let result = perform(&shared, &own, &write).await;
        shared.wrote(result.as_ref().map(drop));
        match result {
            Ok(()) => recent.push_back(Instant::now()),
            Err(error) => {
                // Another Node of this name, or none, or other taints: what is known of it is out of date.
                if matches!(api::code(&error), Some(404 | 409 | 422)) {
                    refresh(&shared).await;
                }
                sleep(waits.next().unwrap_or_default()).await;
            }
        }
    }
}

/// The first thing that differs from the wish.
fn next_write(wish: &Wish, own: &OwnNode) -> Option<Write> {
    if let Some(wanted) = &wish.annotations {
        // Of a Node made anew under this name, the wish does not know yet; peers would take it for stale or copied.
        let meant = wanted.get(ANNOUNCEMENT).and_then(|text| Announcement::parse(text).ok());
        if meant.is_some_and(|announcement| announcement.uid != own.uid) {
            return None;
        }
        let stands = |(name, value): (&String, &String)| own.annotations.get(name) == Some(value);
        if !wanted.iter().all(stands) {
            return Some(Write::Announcement(wanted.clone()));
        }
        let superfluous = |name: &&str| own.annotations.contains_key(*name) && !wanted.contains_key(*name);
        let leftovers: Vec<String> =
            PUBLISHED.iter().filter(|name| superfluous(name)).map(|name| (*name).to_owned()).collect();
        if !leftovers.is_empty() {
            return Some(Write::Leftovers(leftovers));
        }
    }
    (wish.ready && !own.tainted.is_empty()).then(|| Write::Untaint(own.tainted.clone()))
}

/// How long to wait before the next write.
fn pace(recent: &mut VecDeque<Instant>, now: Instant) -> Duration {
    while recent.front().is_some_and(|at| now.duration_since(*at) > MEMORY) {
        recent.pop_front();
    }
    match recent.len() {
        // The announcement, its leftovers and the taint are three writes of one kind: the first.
        0..=2 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 3).min(6)),
    }
}

async fn perform(shared: &Arc<Shared>, own: &OwnNode, write: &Write) -> anyhow::Result<()> {
    let name = &shared.node;
    let node = match write {
        Write::Announcement(annotations) => {
            let node = announce(shared, own, annotations).await?;
            tracing::info!("announced to the registry");
            let before = own.annotations.get(ANNOUNCEMENT).map(String::as_str);
            let now = annotations.get(ANNOUNCEMENT).map(String::as_str);
            happening::announced(before, now).into_iter().for_each(|happening| shared.tell(happening));
            node
        }
        Write::Leftovers(names) => {
            let none: Vec<_> = names.iter().map(|name| (name.clone(), None)).collect();
            let node = shared.api.merge(name, &own.uid, &none).await?;
            tracing::info!("the announcement is taken back");
            node
        }
        Write::Untaint(places) => {
            let node = shared.api.untaint(name, &own.uid, places).await?;
            tracing::info!("the startup taint is removed: pods may run here");
            node
        }
    };
    learn(shared, &node);
    Ok(())
}

async fn announce(
    shared: &Arc<Shared>,
    own: &OwnNode,
    annotations: &BTreeMap<String, String>,
) -> anyhow::Result<Node> {
    let annotations: Vec<(String, String)> = annotations.clone().into_iter().collect();
    let apply = |force| shared.api.apply(&shared.node, &own.uid, &annotations, force);
    match apply(false).await {
        Err(error) if api::is_owned(&error) => {
            tracing::warn!("somebody else wrote this Node's announcement, which is taken back: {error:#}");
            apply(true).await
        }
        // Servers before 1.29 cannot apply anything to a Node with two InternalIPs (kubernetes#121896).
        Err(error) if api::code(&error) == Some(500) => {
            let all: Vec<_> =
                annotations.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
            shared.api.merge(&shared.node, &own.uid, &all).await
        }
        result => result,
    }
}

async fn refresh(shared: &Arc<Shared>) {
    if let Ok(Some(node)) = shared.api.get(&shared.node, 0).await {
        learn(shared, &node);
    }
}

fn learn(shared: &Arc<Shared>, node: &Node) {
    let changed = shared.with(|store| store.written(node, Instant::now()));
    shared.notify(changed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_a_difference_is_written() {
        const A: &str = "warren.internal/announcement";
        const E: &str = "warren.internal/epoch";
        let wish = |annotations, ready| Wish { annotations, ready };
        let both = map(&[(A, "a"), (E, "0")]);
        let announce = || Some(Write::Announcement(both.clone()));
        for (wish, present, tainted, expected) in [
            (wish(Some(both.clone()), false), map(&[]), false, announce()),
            (wish(Some(both.clone()), false), map(&[(A, "a")]), false, announce()),
            (wish(Some(both.clone()), false), map(&[(A, "b"), (E, "0")]), true, announce()),
            (wish(Some(both.clone()), true), both.clone(), false, None),
            (wish(Some(both.clone()), false), both.clone(), true, None),
            (wish(Some(both.clone()), true), both.clone(), true, Some(Write::Untaint(vec![3]))),
            (
                wish(Some(map(&[])), false),
                both.clone(),
                false,
                Some(Write::Leftovers(vec![A.into(), E.into()])),
            ),
            (wish(Some(map(&[])), false), map(&[("warren.internal/rotate", "now")]), false, None),
            (wish(None, false), both.clone(), false, None),
        ] {
            let tainted = if tainted { vec![3] } else { vec![] };
            let own = OwnNode { uid: "u".into(), annotations: present, tainted };
            assert_eq!(next_write(&wish, &own), expected, "{wish:?} on {own:?}");
        }
    }

    #[test]
    fn what_is_said_of_an_earlier_node_of_this_name_is_not_written_to_its_successor() {
        let text = |uid: &str| {
            format!(
                r#"{{"version":1,"node":"a","uid":"{uid}","epochs":[],"podCIDRs":[],"endpoints":[],
                    "backend":"userspace","mtu":1420}}"#
            )
        };
        let wish = |uid: &str| Wish { annotations: Some(map(&[(ANNOUNCEMENT, &text(uid))])), ready: true };
        let own = OwnNode { uid: "new".into(), annotations: map(&[]), tainted: Vec::new() };
        assert_eq!(next_write(&wish("old"), &own), None);
        assert!(matches!(next_write(&wish("new"), &own), Some(Write::Announcement(_))));
    }

    #[test]
    fn who_overwrites_again_and_again_is_not_kept_company() {
        let now = Instant::now();
        let mut recent: VecDeque<Instant> = std::iter::repeat_n(now, 2).collect();
        assert_eq!(pace(&mut recent, now), Duration::ZERO);
        recent.extend(std::iter::repeat_n(now, 5));
        assert_eq!(pace(&mut recent, now), Duration::from_secs(16));
        recent.extend(std::iter::repeat_n(now, 50));
        assert_eq!(pace(&mut recent, now), Duration::from_secs(64));
        assert_eq!(pace(&mut recent, now + MEMORY + Duration::from_secs(1)), Duration::ZERO);
    }
}
