//! Receiving datagrams: several messages by one system call, each perhaps a run of datagrams that the kernel has
//! joined (UDP_GRO).

use std::io;
use std::os::fd::AsFd as _;

use super::counters::{Counters, Io};
use super::udp::UdpSocket;
use crate::device::{MAX_PACKET, Path};
use crate::sys::mmsg;

/// Messages received by one system call, as long as they are single datagrams: beyond 64 the call's own cost is below a
/// percent of the decryption.
const MESSAGES: usize = 64;

/// The same when they are runs: a few hundred KiB, which stay in the processor's cache until they are decrypted.
const RUNS: usize = 4;

/// From one buffer to the next: a message of any size, and a few cache lines more, so that the starts of all buffers do
/// not share the same few sets of the processor's cache.
const SLOT: usize = MAX_PACKET + 1 + 3 * 64;

/// Buffers for one batch of received messages.
pub struct Receiver {
    inner: mmsg::Receiver,
    most: usize,
}

/// Datagrams of one sender, one behind the other.
pub struct Run<'a> {
    /// The sender, and which of our addresses it has sent to.
    pub path: Path,
    bytes: &'a [u8],
    segment: usize,
}

impl Receiver {
    /// Untouched memory costs nothing: single datagrams of the usual size use one page of each buffer.
    pub fn new() -> Self {
        Self { inner: mmsg::Receiver::new(MESSAGES, SLOT), most: MESSAGES }
    }

    /// Receives what is there, up to a batch. Returns how many messages that were; 0 if there was none.
    ///
    /// # Errors
    /// Those of recvmmsg(2) which tell something.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        match self.inner.receive(socket.as_fd(), self.most) {
            Ok(received) => {
                let runs = self.inner.messages().any(|message| message.segment.is_some());
                self.most = if runs { RUNS } else { MESSAGES };
                Ok(received)
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// What the last call received. What did not fit is counted.
    pub fn runs<'a>(&'a self, counters: &'a Counters) -> impl Iterator<Item = Run<'a>> {
        self.inner.messages().filter_map(|message| {
            let bytes = message.bytes;
            let Some(remote) = message.from.filter(|_| !message.truncated) else {
                counters.count(Io::Truncated, 1);
                return None;
            };
            let path = Path { remote, local: message.to };
            Some(Run { path, bytes, segment: message.segment.unwrap_or(bytes.len().max(1)) })
        })
    }
}

impl<'a> Run<'a> {
    /// The datagrams in the order they came. An empty one is none.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.segment)
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::runtime::udp::Sockets;

    #[test]
    fn what_does_not_fit_is_counted() {
        let sockets = Sockets::bind(1, 0, 0).unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut receiver = Receiver { inner: mmsg::Receiver::new(1, 16), most: 1 };
        for (len, fits) in [(16, true), (17, false), (100, false)] {
            sender.send_to(&vec![7; len], ("127.0.0.1", sockets.port())).unwrap();
            let socket = sockets.lane(0);
            poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000u16)).unwrap();
            assert_eq!(receiver.receive(socket).unwrap(), 1);
            let counters = Counters::default();
            assert_eq!(receiver.runs(&counters).count(), usize::from(fits), "{len} bytes");
            let truncated = counters.counts(true).find(|(name, _)| *name == "truncated");
            assert_eq!(truncated, Some(("truncated", u64::from(!fits))), "{len} bytes");
        }
    }
}
