//! What a watch says, event by event (Kubernetes API concepts, "Efficient detection of changes": one JSON object a line).
//!
//! Not by kube's own reader: nearly all events are heartbeats that change nothing for Warren, hundreds a second of 4 KB
//! each, and it copies each line twice before it is read. Here a line is read where it lies, and most of it is not.

use std::io;
use std::pin::Pin;

use futures_util::{AsyncBufRead, AsyncBufReadExt as _};
use kube::core::{Status, WatchEvent};
use memchr::memmem;
use warren_api::node::{Metadata, Partial};

/// The longest line that is taken, in bytes. etcd refuses objects of more than 1.5 MiB.
const LONGEST: usize = 16 << 20;

/// The events of one watch.
pub struct Events {
    body: Pin<Box<dyn AsyncBufRead + Send>>,
    /// What has come of a line whose end has not.
    begun: Vec<u8>,
}

impl Events {
    /// From the body of the server's answer.
    pub fn new(body: impl AsyncBufRead + Send + 'static) -> Self {
        Self { body: Box::pin(body), begun: Vec::new() }
    }

    /// The next event; `None` once the watch has ended, also in the middle of a line: it can go on where it was. May be
    /// dropped before it is done, and asked for again.
    ///
    /// # Errors
    /// What the server says instead, or that it cannot be read.
    pub async fn next(&mut self) -> Option<kube::Result<WatchEvent<Partial>>> {
        loop {
            let came = match self.body.fill_buf().await {
                Ok([]) => return None,
                Ok(came) => came,
                Err(error) if is_end(&error) => return None,
                Err(error) => return Some(Err(kube::Error::ReadEvents(error))),
            };
            let Some(end) = memchr::memchr(b'\n', came) else {
                if self.begun.len() + came.len() > LONGEST {
                    let error = io::Error::other(format!("an event is longer than {} MiB", LONGEST >> 20));
                    return Some(Err(kube::Error::ReadEvents(error)));
                }
                self.begun.extend_from_slice(came);
                let len = came.len();
                self.body.consume_unpin(len);
                continue;
            };
            let event = if self.begun.is_empty() {
                read(&came[..end])
            } else {
                self.begun.extend_from_slice(&came[..end]);
                let event = read(&self.begun);
                self.begun.clear();
                event
            };
            self.body.consume_unpin(end + 1);
            return Some(event);
        }
    }
}

fn read(line: &[u8]) -> kube::Result<WatchEvent<Partial>> {
    if let Some(event) = without_owners(line) {
        return Ok(event);
    }
    serde_json::from_slice(line).map_err(|error| match serde_json::from_slice::<Status>(line) {
        Ok(status) => kube::Error::Api(Box::new(status)),
        Err(_) => kube::Error::SerdeError(error),
    })
}

/// An event, read only up to who owns which field (`managedFields`): two thirds of it, which Warren does not read, and which
/// the API server writes last (`ObjectMeta`, k8s.io/apimachinery/pkg/apis/meta/v1/types.go). `None` where what Warren does
/// read is not all before that.
///
/// Within a text of JSON quotes are escaped, so that what is looked for are names, and of an array or a map: among
/// labels and annotations are only texts. If one stood elsewhere than in the metadata, the braces would not fit.
fn without_owners(line: &[u8]) -> Option<WatchEvent<Partial>> {
    let end = memmem::find(line, br#","managedFields":["#)?;
    let kept = &line[..end];
    let has = |name: &[u8]| memmem::find(kept, name).is_some();
    if !has(br#""labels":{"#) || !has(br#""annotations":{"#) {
        return None;
    }
    let event: WatchEvent<Partial> = serde_json::from_slice(&[kept, b"}}}"].concat()).ok()?;
    let (WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)) = &event
    else {
        return None;
    };
    let Metadata { uid, resource_version, .. } = &object.metadata;
    (!uid.is_empty() && !resource_version.is_empty()).then_some(event)
}

/// Whether the connection ended in the middle of an answer, as where a server or what is before it ends. hyper tells that
/// of a chunked body by its words alone.
fn is_end(error: &io::Error) -> bool {
    let mut causes =
        std::iter::successors(error.get_ref().map(|error| error as &dyn std::error::Error), |e| e.source());
    error.kind() == io::ErrorKind::UnexpectedEof
        || causes.any(|cause| {
            let eof = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
            cause.downcast_ref().is_some_and(eof) || cause.to_string().contains("unexpected EOF during chunk")
        })
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, TryStreamExt as _, stream};

    use super::*;

    /// Reads all events of a body that comes in these pieces, each told by the version or the error.
    async fn read_all(pieces: Vec<io::Result<Vec<u8>>>) -> Vec<String> {
        let body = stream::iter(pieces).then(async |piece| {
            tokio::task::yield_now().await;
            piece
        });
        let mut events = Events::new(Box::pin(body).into_async_read());
        let mut told = Vec::new();
        loop {
            // Dropped half done and asked again, as whoever reads only what has come does.
            let next = loop {
                if let Some(next) = futures_util::FutureExt::now_or_never(events.next()) {
                    break next;
                }
                tokio::task::yield_now().await;
            };
            told.push(match next {
                None => return told,
                Some(Ok(WatchEvent::Modified(Partial { metadata }))) => metadata.resource_version,
                Some(Ok(event)) => format!("{event:?}"),
                Some(Err(error)) => {
                    told.push(error.to_string());
                    return told;
                }
            });
        }
    }

    fn event(version: u32) -> String {
        format!(
            r#"{{"type":"MODIFIED","object":{{"metadata":{{"name":"é","resourceVersion":"{version}"}}}}}}"#
        ) + "\n"
    }

    #[tokio::test]
    async fn events_come_whole_however_the_body_is_cut() {
        let body: Vec<u8> = (1..=5).map(event).collect::<String>().into_bytes();
        for len in 1..=body.len() {
            let pieces = body.chunks(len).map(|piece| Ok(piece.to_vec())).collect();
            assert_eq!(read_all(pieces).await, ["1", "2", "3", "4", "5"], "in pieces of {len}");
        }
    }

    #[test]
    fn what_comes_after_the_owners_counts_where_it_is_read() {
        let members = [
            r#""name":"a""#,
            r#""uid":"u""#,
            r#""resourceVersion":"7""#,
            // With names of metadata's.
            r#""labels":{"node-role.kubernetes.io/control-plane":"","uid":"no","resourceVersion":"no","managedFields":"no"}"#,
            r#""annotations":{"warren.internal/quarantine":"a \",\"managedFields\":[ in a text"}"#,
        ];
        let event = |before: &[&str], after: &[&str]| {
            let owners = [r#""managedFields":[{"manager":"kubelet"}]"#];
            let metadata = [before, &owners, after].concat().join(",");
            format!(
                r#"{{"type":"MODIFIED","object":{{"kind":"PartialObjectMetadata","metadata":{{{metadata}}}}}}}"#
            )
        };
        let read = |line: &str| match read(line.as_bytes()).unwrap() {
            WatchEvent::Modified(Partial { metadata }) => metadata,
            other => panic!("{other:?}"),
        };
        let expected = read(&event(&[], &members));
        assert_eq!((expected.labels.len(), expected.annotations.len()), (1, 1));
        for len in 0..=members.len() {
            for turn in 0..members.len() {
                let mut members = members;
                members.rotate_left(turn);
                let line = event(&members[..len], &members[len..]);
                assert_eq!(without_owners(line.as_bytes()).is_some(), len == members.len(), "{line}");
                assert_eq!(read(&line), expected, "{line}");
            }
        }
        // Not where it is metadata's: who reads on finds out what is wrong.
        let elsewhere = event(&members, &[]).replace(r#"},"managedFields""#, r#","managedFields""#);
        assert!(super::read(elsewhere.as_bytes()).is_err());
    }

    #[tokio::test]
    async fn a_watch_ends_in_the_middle_of_a_line_as_at_its_end() {
        let half = event(2).as_bytes()[..20].to_vec();
        assert_eq!(read_all(vec![Ok(event(1).into_bytes()), Ok(half.clone())]).await, ["1"]);
        let cut = io::Error::other(io::Error::from(io::ErrorKind::UnexpectedEof));
        assert_eq!(read_all(vec![Ok(event(1).into_bytes()), Ok(half), Err(cut)]).await, ["1"]);
        let told =
            read_all(vec![Ok(event(1).into_bytes()), Err(io::ErrorKind::ConnectionReset.into())]).await;
        assert_eq!(told[0], "1");
        assert!(told[1].contains("connection reset"), "{told:?}");
    }

    #[tokio::test]
    async fn what_is_no_event_is_told() {
        let status =
            r#"{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}"#;
        let told = read_all(vec![Ok(format!("{status}\n").into_bytes())]).await;
        assert!(told[0].starts_with("ApiError: too old: Expired"), "{told:?}");
        let told = read_all(vec![Ok(b"\xff\n".to_vec())]).await;
        assert!(told[0].contains("line 1"), "{told:?}");
        let endless = (0..=LONGEST >> 20).map(|_| Ok(vec![b' '; 1 << 20])).collect();
        let told = read_all(endless).await;
        assert!(told[0].contains("longer than 16 MiB"), "{told:?}");
    }
}
