//! Everything that may go wrong between a daemon and its API server, on demand.

use std::time::Duration;

use super::ApiServer;
use super::counters::Verb;
use super::shared::{Order, lock};
use super::status::Refusal;

/// Requests answered with an error. [`Failure::status`] makes one that meets everything until it is lifted.
#[derive(Debug, Clone)]
pub struct Failure {
    code: u16,
    verb: Option<Verb>,
    left: Option<u32>,
    retry_after: Option<u32>,
}

impl Failure {
    /// All requests get this HTTP status.
    pub fn status(code: u16) -> Self {
        Self { code, verb: None, left: None, retry_after: None }
    }

    /// Only requests of this verb.
    #[must_use]
    pub fn of(self, verb: Verb) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// Only the next `requests` of them.
    #[must_use]
    pub fn times(self, requests: u32) -> Self {
        Self { left: Some(requests), ..self }
    }

    /// With the header `Retry-After`, in seconds: what comes with a 429.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    pub(super) fn meets(&self, verb: Verb) -> bool {
        self.left != Some(0) && self.verb.is_none_or(|only| only == verb)
    }

    pub(super) fn refusal(&self) -> Refusal {
        Refusal::fault(self.code, self.retry_after)
    }

    /// Counts one request; true when that was the last.
    pub(super) fn use_up(&mut self) -> bool {
        self.left = self.left.map(|left| left - 1);
        self.left == Some(0)
    }
}

/// What falls silent: connections are accepted and stay open, answers do not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// Open watches send nothing, not even bookmarks; all else is answered.
    Watches,
    /// Nothing is answered at all.
    Everything,
}

/// What is thrown into open watches.
#[derive(Debug, Clone)]
pub enum Garbage {
    /// A whole line that is no JSON; the stream goes on.
    Noise,
    /// A line of JSON that is no watch event; the stream goes on.
    NoEvent,
    /// Half an event, then the connection is cut.
    Truncated,
    /// These bytes, followed by nothing (not even the end of the line).
    Bytes(Vec<u8>),
}

/// Faults. All take effect at once, on requests under way and watches already open, too, unless said otherwise.
impl ApiServer {
    /// Every request from now on waits so long before it is looked at.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.control.send_modify(|control| control.latency = latency);
    }

    /// Answers requests with an error. Several failures may stand; a request meets the first that fits.
    pub fn fail(&self, failure: Failure) {
        lock(&self.shared.failures).push(failure);
    }

    /// Ends all failures.
    pub fn lift_failures(&self) {
        lock(&self.shared.failures).clear();
    }

    /// Falls silent, until [`Self::resume`].
    pub fn stall(&self, what: Stall) {
        self.shared.control.send_modify(|control| control.stall = Some(what));
    }

    /// Ends a stall: what waited is answered, and watches go on where they were.
    pub fn resume(&self) {
        self.shared.control.send_modify(|control| control.stall = None);
    }

    /// Cuts all connections, without a word.
    pub fn disconnect(&self) {
        self.shared.control.send_modify(|control| control.disconnects += 1);
    }

    /// Ends all watches as at their timeout; connections stay.
    pub fn end_watches(&self) {
        self.shared.order(&Order::End);
    }

    /// Goes away: all connections are cut and new ones refused, until [`Self::come_back`]. Mutations go on.
    pub fn go_away(&self) {
        self.shared.control.send_modify(|control| control.away = true);
    }

    /// Listens again, at the same address.
    pub fn come_back(&self) {
        self.shared.control.send_modify(|control| control.away = false);
    }

    /// Forgets the history and the pages of lists under way, as etcd's compaction does every five minutes: a
    /// watch from an older version gets 410, as does an old `continue`. Open watches are up to date and stay.
    pub fn compact(&self) {
        self.shared.write(|store| store.compact());
    }

    /// [`Self::compact`], and every open watch is told 410 (an `ERROR` event with a `Status`) and ended.
    pub fn compact_and_expire_watches(&self) {
        self.compact();
        self.shared.order(&Order::Expire);
    }

    /// Whether a watch from too old a version is answered with the HTTP status 410, rather than with 200 and
    /// an `ERROR` event, as newer servers do.
    pub fn set_gone_as_status(&self, status: bool) {
        self.shared.control.send_modify(|control| control.gone_as_status = status);
    }

    /// Throws garbage into all open watches.
    pub fn garble_watches(&self, garbage: Garbage) {
        let half =
            b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8";
        let order = match garbage {
            Garbage::Noise => Order::Say("\u{1b}[31m<html>502 Bad Gateway</html>\n".into()),
            Garbage::NoEvent => Order::Say("{\"colour\":\"blue\"}\n".into()),
            Garbage::Truncated => Order::Cut(half[..].into()),
            Garbage::Bytes(bytes) => Order::Say(bytes.into()),
        };
        self.shared.order(&order);
    }
}
