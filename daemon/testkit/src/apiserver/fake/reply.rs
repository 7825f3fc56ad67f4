//! Bodies of responses: whole, in pages written as they are sent, or without end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;

use super::counters::Verb;
use super::object::{Form, Node};
use super::shared::Shared;
use super::status::Refusal;

/// How much of a list is written at once: what a socket takes in one go, roughly.
const CHUNK: usize = 64 << 10;

/// A body whose bytes are counted as they leave.
pub(super) struct Reply {
    shared: Arc<Shared>,
    verb: Verb,
    content: Content,
}

pub(super) enum Content {
    Whole(Bytes),
    List(List),
    /// What a watch sends; `Err` cuts the connection.
    Feed(mpsc::Receiver<Result<Bytes, Cut>>),
}

/// A list, written Node by Node: 5,000 of them as one text would be 60 MiB for each who asks.
pub(super) struct List {
    pub head: String,
    pub nodes: Vec<Arc<Node>>,
    pub written: usize,
    pub form: Form,
}

/// The connection ends here, in the middle of the body.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("cut by order of the test")
    }
}

impl std::error::Error for Cut {}

impl Reply {
    pub fn new(shared: &Arc<Shared>, verb: Verb, content: Content) -> Self {
        Self { shared: shared.clone(), verb, content }
    }

    /// A response with a body of JSON.
    pub fn response(shared: &Arc<Shared>, verb: Verb, code: u16, content: Content) -> Response<Self> {
        let mut response = Response::new(Self::new(shared, verb, content));
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
            .headers_mut()
            .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
        response
    }

    /// A response that says no.
    pub fn refusal(shared: &Arc<Shared>, verb: Verb, refusal: &Refusal) -> Response<Self> {
        let content = Content::Whole(refusal.to_json().to_string().into());
        let mut response = Self::response(shared, verb, refusal.code, content);
        if let Some(seconds) = refusal.retry_after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        response
    }
}

impl List {
    /// The next piece; `None` after the last.
    fn next(&mut self) -> Option<Bytes> {
        let mut out = std::mem::take(&mut self.head).into_bytes();
        if out.is_empty() && self.written > self.nodes.len() {
            return None;
        }
        while out.len() < CHUNK && self.written < self.nodes.len() {
            if self.written > 0 {
                out.push(b',');
            }
            self.nodes[self.written].write(&mut out, self.form, false);
            self.written += 1;
        }
        if self.written == self.nodes.len() {
            out.extend_from_slice(b"]}");
            self.written += 1;
        }
        Some(out.into())
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let next = match &mut self.content {
            Content::Whole(bytes) => {
                Some(Ok(std::mem::take(bytes))).filter(|next| !matches!(next, Ok(bytes) if bytes.is_empty()))
            }
            Content::List(list) => list.next().map(Ok),
            Content::Feed(feed) => match feed.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(next) => next,
            },
        };
        if let Some(Ok(bytes)) = &next {
            self.shared.counters.sent(self.verb, bytes.len());
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match &self.content {
            Content::Whole(bytes) => hyper::body::SizeHint::with_exact(bytes.len() as u64),
            Content::List(_) | Content::Feed(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Hyper wants to know that its services cannot fail.
pub(super) type Answer = Result<Response<Reply>, Infallible>;
