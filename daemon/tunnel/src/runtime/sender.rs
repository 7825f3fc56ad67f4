//! Sending datagrams: runs of equal ones for one destination as one message, which the kernel cuts apart again
//! (UDP_SEGMENT), and several messages by one system call.

use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::counters::{Counters, Io};
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
    inner: mmsg::Sender,
    /// Whether runs are sent as such.
    segmentation: bool,
}

/// What to do about a message that was refused.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// The address it was to come from is no longer ours, or leads nowhere.
    NotFromThere,
    /// The path takes no runs: not now, and not later.
    NoRuns,
    /// The path does not take this run: its datagrams are longer than the link, and would have to be fragmented.
    NotThisRun,
    /// It is lost.
    Lost,
}

impl Refused {
    /// What the kernel means (`udp.c` and `ipv6/udp.c`, `udp_send_skb`; `route.c`, `ip_route_output_key_hash_rcu`).
    fn by(error: Errno, is_run: bool, has_source: bool) -> Self {
        match error {
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
        Self { inner: mmsg::Sender::new(BATCH), segmentation: true }
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
        let most = if self.segmentation { MAX_SEGMENTS } else { 1 };
        let mut runs = batch.runs(most, MAX_RUN).peekable();
        let mut messages: Vec<Message<'_>> = Vec::with_capacity(batch.len());
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
    }

    /// Sends messages by one socket. sendmmsg stops at the first that fails, and says why only if that is
    /// the first of all; so go on behind it.
    fn send_messages(&mut self, socket: &UdpSocket, mut messages: &[Message<'_>], counters: &Counters) {
        let mut waited = false;
        while let Some((first, rest)) = messages.split_first() {
            let result = self.inner.send(socket.as_fd(), messages);
            let error = match result {
                Ok(sent) => {
                    messages = &messages[sent..];
                    continue;
                }
                Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
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
            Refused::NotFromThere => {
                counters.count(Io::SourceRefused, 1);
                return self.send_messages(socket, &[Message { from: None, ..*message }], counters);
            }
            Refused::NoRuns => {
                tracing::warn!(error = error.desc(), "datagrams are not sent in runs from now on");
                self.segmentation = false;
            }
            Refused::NotThisRun => {}
        }
        counters.count(Io::RunRefused, 1);
        let segment = message.segment.map_or(message.bytes.len(), usize::from).max(1);
        let single: Vec<_> =
            message.bytes.chunks(segment).map(|bytes| Message { bytes, segment: None, ..*message }).collect();
        self.send_messages(socket, &single, counters);
    }
}

/// How many datagrams a message is.
fn count(message: &Message<'_>) -> usize {
    message.segment.map_or(1, |segment| message.bytes.len().div_ceil(segment.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_are_tried_again() {
        for error in [Errno::EIO, Errno::EINVAL, Errno::EMSGSIZE, Errno::ENETUNREACH, Errno::EPERM] {
            assert_eq!(Refused::by(error, false, false), Refused::Lost, "{error}");
        }
        assert_eq!(Refused::by(Errno::EIO, true, true), Refused::NoRuns);
        assert_eq!(Refused::by(Errno::EMSGSIZE, true, true), Refused::NotThisRun);
        assert_eq!(Refused::by(Errno::EINVAL, true, false), Refused::NotThisRun);
        assert_eq!(Refused::by(Errno::ENETUNREACH, true, false), Refused::Lost);
    }

    #[test]
    fn a_source_that_is_gone_is_given_up_first() {
        for is_run in [true, false] {
            assert_eq!(Refused::by(Errno::EINVAL, is_run, true), Refused::NotFromThere);
        }
        assert_eq!(Refused::by(Errno::EPERM, false, true), Refused::Lost);
    }
}
