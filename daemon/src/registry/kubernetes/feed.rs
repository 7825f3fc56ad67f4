//! Keeps the store up to date: one list, then a watch for as long as the daemon lives.
//!
//! ```text
//!            ┌───────────────── 410 Gone: metadata list ◄───┐
//!  full list ┴─► watch ──ends──► watch from the last version ┤
//!                  │                                        │
//!                  └──fails──► wait with jitter, then again ─┘
//! ```
//!
//! Whatever fails, what is known holds and the tunnels stay: nodes are forgotten only when the server says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{FutureExt as _, StreamExt as _};
use kube::core::WatchEvent;
use rand_core::{OsRng, RngCore as _};
use tokio::time::{sleep, sleep_until, timeout};
use warren_api::node::Partial;

use super::{Shared, api, backoff};

/// How long a watch lasts, in seconds: as long as client-go's, random so that 5,000 nodes do not come back at once.
const WATCH: std::ops::Range<u64> = 300..600;

/// A watch that says nothing for this long is dead: bookmarks come once a minute.
const SILENCE: Duration = Duration::from_secs(150);

/// How long to rest between two looks at the watch. Thousands of nodes send hundreds of heartbeats a second, which
/// cost less read together than one by one; a change may wait so long.
const REST: Duration = Duration::from_millis(40);

/// A watch that ends sooner than this did not work.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// Why a watch ended.
enum End {
    /// As it should: it goes on where it stopped.
    Normal,
    /// The server does not remember so far back.
    Gone,
}

/// Runs for as long as the daemon does.
pub async fn run(shared: Arc<Shared>) {
    let mut waits = backoff();
    loop {
        let began = Instant::now();
        let result = session(&shared).await;
        match result {
            Ok(()) if began.elapsed() >= TOO_SHORT => {
                waits = backoff();
                continue;
            }
            Ok(()) => {}
            Err(error) => shared.lost_contact(&error),
        }
        if began.elapsed() > Duration::from_secs(60) {
            waits = backoff();
        }
        sleep(waits.next().unwrap_or_default()).await;
    }
}

/// Lists if that is needed, and watches until the watch ends.
async fn session(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let version = shared.with(|store| store.version().to_owned());
    if version.is_empty() {
        list(shared).await?;
    }
    match watch(shared).await {
        Ok(End::Normal) => Ok(()),
        Ok(End::Gone) => relist(shared).await,
        Err(error) if matches!(api::code(&error), Some(410 | 504)) => relist(shared).await,
        Err(error) => Err(error),
    }
}

async fn list(shared: &Arc<Shared>) -> anyhow::Result<()> {
    // What was known and is doubted is newer than what a cache may hold.
    let recent = shared.with(|store| store.len() > 0);
    let (nodes, version) =
        shared.api.list(recent, |node| node).await.context("the Nodes cannot be listed")?;
    let count = nodes.len();
    shared.with(|store| store.listed(nodes, version, Instant::now()));
    shared.in_contact();
    shared.notify(true);
    tracing::info!(nodes = count, "the Nodes are listed");
    Ok(())
}

/// Finds out from the metadata what was missed.
async fn relist(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let version = shared.with(|store| store.version().to_owned());
    tracing::info!("the watch is too old to go on: the Nodes' metadata are listed");
    let (all, version) = match shared.api.list_metadata(&version).await {
        Ok(listed) => listed,
        Err(error) => {
            // A server whose data were restored from a backup has not come as far as this node has.
            if api::code(&error).is_some_and(|code| matches!(code, 400 | 410 | 504)) {
                shared.with(|store| store.forget_version());
            }
            return Err(error.context("the Nodes' metadata cannot be listed"));
        }
    };
    shared.in_contact();
    let (changed, asks) = shared.with(|store| store.relisted(all, version, Instant::now()));
    asks.into_iter().for_each(|metadata| ask(shared, metadata.name, Instant::now()));
    shared.notify(changed);
    Ok(())
}

async fn watch(shared: &Arc<Shared>) -> anyhow::Result<End> {
    let version = shared.with(|store| store.version().to_owned());
    let seconds = WATCH.start + OsRng.next_u64() % (WATCH.end - WATCH.start);
    let events = shared.api.watch(&version, seconds).await?;
    shared.in_contact();
    let mut events = std::pin::pin!(events);
    loop {
        let mut next =
            timeout(SILENCE, events.next()).await.context("the watch is silent and is given up")?;
        let mut changed = false;
        // Everything that has come, then a rest.
        loop {
            let Some(event) = next else {
                shared.notify(changed);
                return Ok(End::Normal);
            };
            match event.map_err(anyhow::Error::from).and_then(|event| handle(shared, event)) {
                Ok(news) => changed |= news,
                Err(error) => {
                    shared.notify(changed);
                    return if api::code(&error) == Some(410) { Ok(End::Gone) } else { Err(error) };
                }
            }
            match events.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        shared.in_contact();
        shared.notify(changed);
        sleep(REST).await;
    }
}

/// Takes in one event; says whether it changed anything.
fn handle(shared: &Arc<Shared>, event: WatchEvent<Partial>) -> anyhow::Result<bool> {
    let now = Instant::now();
    let effect = match event {
        WatchEvent::Added(Partial { metadata }) | WatchEvent::Modified(Partial { metadata }) => {
            let effect = shared.with(|store| store.seen(&metadata, now));
            if let Some(at) = effect.ask {
                ask(shared, metadata.name, at);
            }
            effect
        }
        WatchEvent::Deleted(Partial { metadata }) => shared.with(|store| store.deleted(&metadata)),
        WatchEvent::Bookmark(bookmark) => {
            shared.with(|store| store.bookmark(bookmark.metadata.resource_version));
            return Ok(false);
        }
        WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
    };
    Ok(effect.changed)
}

/// Asks for one Node until there is an answer that is new enough.
fn ask(shared: &Arc<Shared>, name: String, at: Instant) {
    let shared = shared.clone();
    tokio::spawn(async move {
        sleep_until(at.into()).await;
        let mut waits = backoff();
        while let Some(version) = shared.with(|store| store.wanted(&name)) {
            let answer = {
                // Nobody closes the semaphore.
                let Ok(_place) = shared.places.acquire().await else { return };
                shared.api.get(&name, version).await
            };
            match answer {
                Ok(Some(node)) => {
                    let changed = shared.with(|store| store.got(&node, Instant::now()));
                    shared.notify(changed);
                    if shared.with(|store| store.wanted(&name)).is_none() {
                        return;
                    }
                }
                Ok(None) => return shared.with(|store| store.gone(&name)),
                Err(error) => tracing::debug!(node = name, "the Node cannot be got: {error:#}"),
            }
            sleep(waits.next().unwrap_or_default()).await;
        }
    });
}
