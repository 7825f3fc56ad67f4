//! WATCH: what changed since a version, line by line, as it happens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::object::Form;
use super::reply::Cut;
use super::request::Query;
use super::shared::{Order, Shared};
use super::status::Refusal;
use super::store::{Event, Kind};

/// How long a watch lasts that asks for no `timeoutSeconds`: the least that a real server takes.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// How long before the end of a watch the last bookmark is sent, as in a real server.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Lines that wait for a slow client before the watch waits for it, too.
const BUFFERED: usize = 64;

/// A watch, as asked for.
#[derive(Debug)]
pub(super) struct Watch {
    form: Form,
    name: Option<String>,
    /// The version from which on; `None`: all that is there, then what changes.
    from: Option<u64>,
    bookmarks: bool,
    timeout: Duration,
}

/// Where lines go.
type Line = Result<Bytes, Cut>;

impl Watch {
    pub fn new(query: &Query, form: Form) -> Result<Self, Refusal> {
        if query.is_true("sendInitialEvents") {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Refusal::invalid("", "sendInitialEvents", why));
        }
        Ok(Self {
            form,
            name: query.name_selected()?.map(str::to_owned),
            from: query.number("resourceVersion")?.filter(|version| *version > 0),
            bookmarks: query.is_true("allowWatchBookmarks"),
            timeout: query.number("timeoutSeconds")?.map_or(TIMEOUT, Duration::from_secs),
        })
    }

    /// Begins to watch; what comes is received from the result.
    pub fn start(self, shared: &Arc<Shared>) -> Result<mpsc::Receiver<Line>, Refusal> {
        if let Some(from) = self.from
            && shared.control.borrow().gone_as_status
        {
            shared.read(|store| store.since(from)).map(drop)?;
        }
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let orders = shared.open_watch();
        tokio::spawn(self.run(shared.clone(), orders, sender));
        Ok(receiver)
    }

    async fn run(
        self,
        shared: Arc<Shared>,
        mut orders: mpsc::UnboundedReceiver<Order>,
        lines: mpsc::Sender<Line>,
    ) {
        let end = Instant::now() + self.timeout;
        let mut bookmark = self.next_bookmark(&shared, end);
        let mut versions = shared.version.subscribe();
        let mut control = shared.control.subscribe();
        let mut at = self.from;
        loop {
            tokio::select! {
                // Fails when the server has ended, and all this with it.
                _ = control.wait_for(|control| control.stall.is_none()) => {}
                () = lines.closed() => return,
            }
            versions.mark_unchanged();
            match self.news(&shared, at) {
                Ok((events, version)) => {
                    for event in events {
                        if lines.send(Ok(event.line(self.form))).await.is_err() {
                            return;
                        }
                    }
                    at = Some(version);
                }
                Err(refusal) => {
                    let _ = lines.send(Ok(error(&refusal))).await;
                    return;
                }
            }
            tokio::select! {
                _ = versions.changed() => {}
                _ = control.changed() => {}
                () = lines.closed() => return,
                () = sleep_until(end) => return,
                () = sleep_until(bookmark), if self.bookmarks && bookmark < end => {
                    // Of a version to come there is nothing to say.
                    let at = at.unwrap_or(0);
                    if at <= shared.read(|store| store.version()) {
                        let _ = lines.send(Ok(self.bookmark(at))).await;
                    }
                    bookmark = self.next_bookmark(&shared, end);
                }
                order = orders.recv() => match order {
                    Some(Order::Say(bytes)) => drop(lines.send(Ok(bytes)).await),
                    Some(Order::Expire) => {
                        let refusal = Refusal::expired(at.unwrap_or(0), at.unwrap_or(0) + 1);
                        let _ = lines.send(Ok(error(&refusal))).await;
                        return;
                    }
                    Some(Order::Cut(bytes)) => {
                        let _ = lines.send(Ok(bytes)).await;
                        // Hyper throws away what it has not written when a body fails: until all is taken
                        // (and written, in the same turn of the connection's task), it must not.
                        drop(lines.reserve_many(BUFFERED).await);
                        let _ = lines.send(Err(Cut)).await;
                        return;
                    }
                    Some(Order::End) | None => return,
                },
            }
        }
    }

    /// The events after `at`, and the version that they lead to.
    fn news(&self, shared: &Shared, at: Option<u64>) -> Result<(Vec<Arc<Event>>, u64), Refusal> {
        let (mut events, version) = shared.read(|store| {
            let events = match at {
                // A version to come is waited for, in silence.
                Some(at) => store.since(at)?,
                None => {
                    let present = store.snapshot();
                    present.iter().map(|node| Arc::new(Event::new(Kind::Added, node.clone()))).collect()
                }
            };
            Ok((events, store.version().max(at.unwrap_or(0))))
        })?;
        if let Some(name) = &self.name {
            events.retain(|event| event.node.text.name == *name);
        }
        Ok((events, version))
    }

    /// After the interval, and once more shortly before the end.
    fn next_bookmark(&self, shared: &Shared, end: Instant) -> Instant {
        let now = Instant::now();
        let last = end - LAST_BOOKMARK.min(self.timeout / 2);
        if now >= last { end } else { last.min(now + shared.options.bookmark_interval) }
    }

    fn bookmark(&self, version: u64) -> Bytes {
        let metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        let object = match self.form {
            Form::Full => json!({
                "kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {},
                "status": { "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } } },
            }),
            Form::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            }),
        };
        format!("{}\n", json!({ "type": "BOOKMARK", "object": object })).into()
    }
}

fn error(refusal: &Refusal) -> Bytes {
    format!("{}\n", json!({ "type": "ERROR", "object": refusal.to_json() })).into()
}
