//! Keeps the store up to date: one list, then a watch for as long as the daemon lives.
//!
//! ```text
//!  full list ──► watch ──ends──► watch again, from the last version
//!                │ ▲ └──fails──► wait with jitter, then the same
//!     410, silent│ │
//!                ▼ │
//!          metadata list ──the server is behind──► full list
//! ```
//!
//! Whatever fails, what is known holds and the tunnels stay: nodes are forgotten only when the server says so.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use kube::core::WatchEvent;
use kube::{Client, Config};
use rand_core::{OsRng, RngCore as _};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::{sleep, sleep_until, timeout};
use warren_api::node::Partial;

use super::events::Events;
use super::{Shared, api, backoff, client};

/// How long a watch lasts, in seconds: as long as client-go's, random so that 5,000 nodes do not come back at once.
const WATCH: std::ops::Range<u64> = 300..600;

/// A watch that says nothing for this long is dead: bookmarks come once a minute. Or the server's data were
/// restored from a backup, and it waits until they have come as far again as this node has.
pub const SILENCE: Duration = Duration::from_secs(150);

/// How long to rest between two looks at the watch. Thousands of nodes send hundreds of heartbeats a second, which
/// cost less read together than one by one; a change may wait so long. The whole thread rests: each heartbeat would
/// wake a runtime that waits for its sockets, whether anybody reads or not.
const REST: Duration = Duration::from_millis(50);

/// After so many vain questions for a Node, some five seconds, that is said.
const VAIN: u32 = 4;

/// A watch that lasted so long has worked: what comes next is not a further attempt.
const WORKED: Duration = Duration::from_secs(1);

/// Why a watch ended.
enum End {
    /// As it should: it goes on where it stopped.
    Normal,
    /// It says nothing, not even that there is nothing to say.
    Silent,
}

/// Starts the thread that keeps the store up to date, until what is returned is dropped.
pub fn start(shared: Arc<Shared>, config: Config) -> anyhow::Result<oneshot::Sender<()>> {
    let (end, ended) = oneshot::channel();
    let runtime = Builder::new_current_thread().enable_all().build().context("the feed cannot be set up")?;
    let feed = move || {
        runtime.block_on(async {
            tokio::select! {
                () = again(|| run(shared.clone(), config.clone()), |why| shared.broke(why)) => {}
                _ = ended => {}
            }
        });
        // A list that is being read ends by itself.
        runtime.shutdown_background();
    };
    std::thread::Builder::new().name("feed".to_owned()).spawn(feed).context("the feed cannot be started")?;
    Ok(end)
}

/// Runs something for ever, anew after a panic, which `broke` is told.
async fn again<F: Future<Output = ()> + Send + 'static>(run: impl Fn() -> F, broke: impl Fn(&JoinError)) {
    let mut waits = backoff();
    loop {
        if let Err(error) = tokio::spawn(run()).await {
            broke(&error);
        }
        sleep(waits.next().unwrap_or_default()).await;
    }
}

async fn run(shared: Arc<Shared>, config: Config) {
    // Of this runtime, so that its connection rests with it. It was set up once before, so it can be.
    let client = match client::client(&config) {
        Ok(client) => client,
        Err(error) => return shared.lost_contact(&error),
    };
    let mut waits = backoff();
    loop {
        let mut watched = Duration::ZERO;
        let result = session(&shared, &client, &mut watched).await;
        if watched >= WORKED {
            waits = backoff();
        }
        match result {
            Ok(()) if watched >= WORKED => continue,
            Ok(()) => {}
            Err(error) => shared.lost_contact(&error),
        }
        sleep(waits.next().unwrap_or_default()).await;
    }
}

/// Lists if that is needed, and watches until the watch ends; `watched` is for how long.
async fn session(shared: &Arc<Shared>, client: &Client, watched: &mut Duration) -> anyhow::Result<()> {
    let version = shared.with(|store| store.version().to_owned());
    if version.is_empty() {
        list(shared).await?;
    }
    let began = Instant::now();
    let end = watch(shared, client).await;
    *watched = began.elapsed();
    match end {
        Ok(End::Normal) => Ok(()),
        Ok(End::Silent) => relist(shared, "the watch is silent").await,
        Err(error) if api::code(&error) == Some(410) || api::is_ahead(&error) => {
            relist(shared, &error.to_string()).await
        }
        Err(error) => Err(error),
    }
}

/// Runs `work` in the runtime that does not rest. A connection is served by the runtime that opened it, and is used
/// again later: opened here, each request on it would wait for two rests.
async fn elsewhere<T: Send + 'static>(
    tasks: &Handle,
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    tasks.spawn(work).await.context("a list broke off, by an error in this program")?
}

async fn list(shared: &Arc<Shared>) -> anyhow::Result<()> {
    // What was known and is doubted is newer than what a cache may hold.
    let recent = shared.with(|store| !store.is_empty());
    let asked = shared.clone();
    let listed = elsewhere(&shared.tasks, async move { asked.api.list(recent).await }).await;
    let (nodes, version) = listed.context("the Nodes cannot be listed")?;
    let count = nodes.len();
    shared.with(|store| store.listed(nodes, version, Instant::now()));
    shared.in_contact();
    shared.notify(true);
    tracing::info!(nodes = count, "the Nodes are listed");
    Ok(())
}

/// Finds out from the metadata what was missed.
async fn relist(shared: &Arc<Shared>, why: &str) -> anyhow::Result<()> {
    let version = shared.with(|store| store.version().to_owned());
    tracing::info!("the Nodes' metadata are listed: {why}");
    let asked = shared.clone();
    let listed = elsewhere(&shared.tasks, async move { asked.api.list_metadata(&version).await }).await;
    let (all, version) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            // A server whose data were restored from a backup has not come as far as this node has.
            if api::code(&error) == Some(410) || api::is_ahead(&error) {
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

async fn watch(shared: &Arc<Shared>, client: &Client) -> anyhow::Result<End> {
    let version = shared.with(|store| store.version().to_owned());
    let seconds = WATCH.start + OsRng.next_u64() % (WATCH.end - WATCH.start);
    let mut events = shared.api.watch(client, &version, seconds).await?;
    shared.in_contact();
    loop {
        let Ok(first) = timeout(shared.silence, events.next()).await else { return Ok(End::Silent) };
        let mut next = Some(first);
        // Everything that has come, then a rest.
        while let Some(event) = next {
            let Some(event) = event else { return Ok(End::Normal) };
            handle(shared, event?)?;
            next = what_has_come(&mut events).await;
        }
        shared.in_contact();
        std::thread::sleep(REST);
    }
}

/// The next event, if it is there. The task that reads the connection hands over a piece at a time, and has to have its
/// turn before it is clear that there is none.
async fn what_has_come(events: &mut Events) -> Option<Option<kube::Result<WatchEvent<Partial>>>> {
    const TURNS: u32 = 3;
    for _ in 0..TURNS {
        if let Some(event) = events.next().now_or_never() {
            return Some(event);
        }
        turn().await;
    }
    None
}

/// Gives all other tasks of this runtime their turn; unlike tokio's `yield_now`, without a question to the kernel for
/// what has come meanwhile. That would be one for each event.
async fn turn() {
    let mut had = false;
    poll_fn(|task| {
        if std::mem::replace(&mut had, true) {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Takes in one event.
fn handle(shared: &Arc<Shared>, event: WatchEvent<Partial>) -> anyhow::Result<()> {
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
            let version = bookmark.metadata.resource_version;
            if !shared.with(|store| store.bookmark(version)) {
                // Its data were restored from a backup, and it would be silent until it has come so far again.
                shared.with(|store| store.forget_version());
                anyhow::bail!("the API server has gone back in time; the Nodes are listed anew");
            }
            return Ok(());
        }
        WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
    };
    shared.notify(effect.changed);
    Ok(())
}

/// Asks for one Node until there is an answer that is new enough.
fn ask(shared: &Arc<Shared>, name: String, at: Instant) {
    let shared = shared.clone();
    // In the runtime that does not rest.
    shared.tasks.clone().spawn(async move {
        sleep_until(at.into()).await;
        let mut waits = backoff();
        let mut vain = 0;
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
                        break;
                    }
                }
                Ok(None) => {
                    shared.with(|store| store.gone(&name));
                    break;
                }
                Err(error) => {
                    tracing::debug!(node = name, "the Node cannot be got: {error:#}");
                    vain += 1;
                    if vain >= VAIN {
                        shared.unread(&name, Some(&error));
                    }
                }
            }
            sleep(waits.next().unwrap_or_default()).await;
        }
        shared.unread(&name, None);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn after_a_panic_it_runs_anew_and_says_so() {
        let (runs, broken) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
        let run = || {
            let runs = runs.clone();
            async move { assert!(runs.fetch_add(1, Ordering::Relaxed) > 0, "the first breaks") }
        };
        let broke = |error: &JoinError| {
            assert!(error.is_panic());
            broken.fetch_add(1, Ordering::Relaxed);
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let twice = async {
                while runs.load(Ordering::Relaxed) < 2 {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                () = again(run, broke) => {}
                () = twice => {}
            }
        });
        assert_eq!(broken.load(Ordering::Relaxed), 1);
    }
}
