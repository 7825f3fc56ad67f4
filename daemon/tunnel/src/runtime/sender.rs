//! Sending datagrams: runs of equal ones for one destination as one message, which the kernel cuts apart again
//! (UDP_SEGMENT), and several messages by one system call.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::counters::{Counters, Io};
use super::recycle::recycle;
use super::udp::{Sockets, UdpSocket};
use crate::device::{Datagrams, Destination, Run};
use crate::sys::mmsg::{self, Message};

/// Datagrams in a batch, and messages sent by one system call.
pub const BATCH: usize = 64;

/// Datagrams in a run: more are refused (kernel `linux/udp.h`, UDP_MAX_SEGMENTS).
pub const MAX_SEGMENTS: usize = 64;

/// Bytes in a run: as many as a UDP datagram over IPv4 can have, although it will not be one.
pub const MAX_RUN: usize = 65_535 - 20 - 8;

/// How long a lane waits for the kernel to send, in milliseconds, before it drops: longer than a full
/// buffer takes at 10 Gbit/s, shorter than anybody would notice.
const SEND_PATIENCE_MS: u8 = 10;

/// Sends batches of datagrams.
pub struct Sender {
    system: System,
    /// Whether runs are sent as such.
    segmentation: bool,
    /// Memory for the messages of a batch, which it takes from one to the next.
    messages: Vec<Message<'static>>,
}

/// sendmmsg(2), as [`mmsg::Sender::send`] has it, or what a test has in its place.
type System = Box<dyn FnMut(BorrowedFd<'_>, &[Message<'_>]) -> io::Result<usize>>;

/// What to do about a message that was refused.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// The address it was to come from is no longer ours, or leads nowhere.
    NotFromThere,
    /// The path takes no runs: not now, and not later.
    NoRuns,
    /// Either of the next and the one before: one datagram alone tells.
    NotFromThereOrNotThisRun,
    /// The path does not take this run: its datagrams are longer than the link, and would have to be fragmented.
    NotThisRun,
    /// It is lost.
    Lost,
}

impl Refused {
    /// What the kernel means (`udp.c` and `ipv6/udp.c`, `udp_send_skb`; `route.c`, `ip_route_output_key_hash_rcu`).
    fn by(error: Errno, is_run: bool, has_source: bool) -> Self {
        match error {
            Errno::EINVAL if is_run && has_source => Self::NotFromThereOrNotThisRun,
            Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH if has_source => {
                Self::NotFromThere
            }
            Errno::EIO | Errno::EOPNOTSUPP if is_run => Self::NoRuns,
            Errno::EINVAL | Errno::EMSGSIZE if is_run => Self::NotThisRun,
            _ => Self::Lost,
        }
    }
}

impl Sender {
    /// Sends runs as such until a path refuses them.
    pub fn new() -> Self {
        let mut inner = mmsg::Sender::new(BATCH);
        Self::by(Box::new(move |socket, messages| inner.send(socket, messages)))
    }

    fn by(system: System) -> Self {
        Self { system, segmentation: true, messages: Vec::with_capacity(BATCH) }
    }

    /// Sends all of `batch`, each datagram by its lane's socket, and empties it. What cannot be sent is
    /// dropped and counted: that is what networks do.
    pub fn send(&mut self, sockets: &Sockets, batch: &mut Datagrams, counters: &Counters) {
        if !batch.is_empty() {
            self.send_all(sockets, batch, counters);
            batch.clear();
        }
    }

    fn send_all(&mut self, sockets: &Sockets, batch: &Datagrams, counters: &Counters) {
        let most = if self.segmentation && sockets.segmentation() { MAX_SEGMENTS } else { 1 };
        let mut runs = batch.runs(most, MAX_RUN).peekable();
        let mut messages: Vec<Message<'_>> = recycle(std::mem::take(&mut self.messages));
        while let Some(Run { note: Destination { lane, .. }, .. }) = runs.peek() {
            let lane = *lane;
            let socket = sockets.lane(lane);
            messages.clear();
            while let Some(run) = runs.next_if(|run| run.note.lane == lane) {
                match socket.address(run.note.to) {
                    Some(to) => {
                        // A run has two datagrams at least, so one of them is shorter than 2^15.
                        let segment = (run.count > 1).then_some(run.segment as u16);
                        let from = socket.source(run.note.from);
                        messages.push(Message { bytes: run.bytes, to, from, segment });
                    }
                    None => counters.count(Io::NoRoute, run.count),
                }
            }
            self.send_messages(socket, &messages, counters);
        }
        self.messages = recycle(messages);
    }

    /// Sends messages by one socket. sendmmsg stops at the first that fails, and says why only if that is
    /// the first of all; so go on behind it.
    fn send_messages(&mut self, socket: &UdpSocket, mut messages: &[Message<'_>], counters: &Counters) {
        let mut waited = false;
        while let Some((first, rest)) = messages.split_first() {
            // Given up meanwhile, by this batch itself.
            if !self.segmentation && messages.iter().any(|message| message.segment.is_some()) {
                return self.send_singly(socket, messages, counters);
            }
            let result = (self.system)(socket.as_fd(), messages);
            let error = match result {
                Ok(sent) => {
                    messages = &messages[sent..];
                    continue;
                }
                Err(error) => errno(&error),
            };
            match error {
                Errno::EINTR => {}
                Errno::EAGAIN if !waited => {
                    waited = true;
                    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    // Whatever comes of it, the next try shows it.
                    let _ = poll(&mut ready, PollTimeout::from(SEND_PATIENCE_MS));
                }
                Errno::EAGAIN => {
                    return counters.count(Io::Congested, messages.iter().map(count).sum());
                }
                error => {
                    self.refused(socket, first, error, counters);
                    messages = rest;
                }
            }
        }
    }

    fn refused(&mut self, socket: &UdpSocket, message: &Message<'_>, error: Errno, counters: &Counters) {
        match Refused::by(error, message.segment.is_some(), message.from.is_some()) {
            Refused::Lost => {
                tracing::debug!(error = error.desc(), "a datagram was not sent");
                return counters.count(Io::NoRoute, count(message));
            }
            Refused::NotFromThere => return self.send_from_anywhere(socket, message, counters),
            Refused::NotFromThereOrNotThisRun => {
                let (first, rest) = split_first(message);
                match (self.system)(socket.as_fd(), &[first]) {
                    Err(error) if errno(&error) == Errno::EINVAL => {
                        return self.send_from_anywhere(socket, message, counters);
                    }
                    // Whatever else is the matter with it is so with the rest.
                    Err(_) => self.send_singly(socket, &[*message], counters),
                    Ok(_) => self.send_singly(socket, &[rest], counters),
                }
                return counters.count(Io::RunRefused, 1);
            }
            Refused::NoRuns => {
                tracing::warn!(error = error.desc(), "datagrams are not sent in runs from now on");
                self.segmentation = false;
                counters.count(Io::SegmentationRefused, 1);
            }
            Refused::NotThisRun => counters.count(Io::RunRefused, 1),
        }
        self.send_singly(socket, &[*message], counters);
    }

    /// Sends what cannot come from the address at which the peer reaches us.
    fn send_from_anywhere(&mut self, socket: &UdpSocket, message: &Message<'_>, counters: &Counters) {
        counters.count(Io::SourceRefused, 1);
        self.send_messages(socket, &[Message { from: None, ..*message }], counters);
    }

    /// Sends runs as single datagrams, in their order.
    fn send_singly(&mut self, socket: &UdpSocket, messages: &[Message<'_>], counters: &Counters) {
        let datagrams = messages.iter().flat_map(|message| {
            let segment = message.segment.map_or(message.bytes.len(), usize::from).max(1);
            message.bytes.chunks(segment).map(move |bytes| Message { bytes, segment: None, ..*message })
        });
        self.send_messages(socket, &datagrams.collect::<Vec<_>>(), counters);
    }
}

/// The first datagram of a run of two at least, and the run of the others.
fn split_first<'a>(run: &Message<'a>) -> (Message<'a>, Message<'a>) {
    let (first, rest) = run.bytes.split_at(run.segment.map_or(run.bytes.len(), usize::from));
    (Message { bytes: first, segment: None, ..*run }, Message { bytes: rest, ..*run })
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// How many datagrams a message is.
fn count(message: &Message<'_>) -> usize {
    message.segment.map_or(1, |segment| message.bytes.len().div_ceil(segment.into()))
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
