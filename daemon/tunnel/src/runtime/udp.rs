//! UDP sockets, one per lane, and moving datagrams through them in batches.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrLike, SockaddrStorage, sockopt,
};

use super::counters::{Counters, Io};
use crate::device::{Datagrams, Destination, MAX_PACKET};
use crate::sys;

/// Datagrams moved by one system call. Beyond 64 a call's own cost is below a percent of the encryption.
pub const BATCH: usize = 64;

/// Wanted size of the kernel's buffers, in bytes: 30 ms at 1 Gbit/s, so that a lane that had to wait for
/// the processor does not lose what came meanwhile.
const SOCKET_BUFFER: usize = 4 << 20;

/// How long a lane waits for the kernel to send, in milliseconds, before it drops: longer than a full
/// buffer takes at 10 Gbit/s, shorter than anybody would notice.
const SEND_PATIENCE_MS: u8 = 10;

/// From one receive buffer to the next: a datagram of any size, and a few cache lines more, so that the
/// starts of all buffers do not share the same few sets of the processor's cache.
const SLOT: usize = MAX_PACKET + 1 + 3 * 64;

/// One UDP socket, for both address families where the system has both.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    port: u16,
    ipv6: bool,
}

impl UdpSocket {
    fn bind(port: u16, mark: u32) -> io::Result<Self> {
        match Self::bind_family(port, mark, true) {
            // IPv6 is compiled out or switched off.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                Self::bind_family(port, mark, false)
            }
            result => result,
        }
    }

    fn bind_family(port: u16, mark: u32, ipv6: bool) -> io::Result<Self> {
        let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(family, SockType::Datagram, flags, None)?;
        if ipv6 {
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        }
        sys::socket::allow_fragments(fd.as_fd(), ipv6)?;
        set_buffers(&fd);
        let any: SocketAddr = match ipv6 {
            true => (Ipv6Addr::UNSPECIFIED, port).into(),
            false => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(any))?;
        let bound: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
        let port = to_socket_addr(&bound).map_or(0, |address| address.port());
        let socket = Self { fd, port, ipv6 };
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }

    fn set_mark(&self, mark: u32) -> io::Result<()> {
        Ok(socket::setsockopt(&self.fd, sockopt::Mark, &mark)?)
    }

    /// How the kernel wants to see `to` on this socket. `None`: an IPv6 address where there is no IPv6.
    fn address(&self, to: SocketAddr) -> Option<SockaddrStorage> {
        match (to, self.ipv6) {
            (SocketAddr::V4(v4), true) => {
                let mapped = SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0);
                Some(SocketAddr::V6(mapped).into())
            }
            (SocketAddr::V6(_), false) => None,
            _ => Some(to.into()),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Large buffers: beyond the system's limit as root, up to it otherwise. Small ones only cost speed.
fn set_buffers(fd: &OwnedFd) {
    if socket::setsockopt(fd, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket::setsockopt(fd, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
    if socket::setsockopt(fd, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket::setsockopt(fd, sockopt::SndBuf, &SOCKET_BUFFER);
    }
}

/// The sockets of all lanes: ports `port`, `port + 1`…
#[derive(Debug)]
pub struct Sockets {
    by_lane: Vec<Arc<UdpSocket>>,
    mark: u32,
}

impl Sockets {
    /// Binds `lanes` consecutive ports from `port` on; 0 looks for free ones.
    ///
    /// # Errors
    /// Those of bind(2) and, for the mark, EPERM.
    pub fn bind(lanes: usize, port: u16, mark: u32) -> io::Result<Self> {
        Self { by_lane: Vec::new(), mark: 0 }.moved(lanes, port, mark)
    }

    /// Sockets on other ports with another mark. Those already on a wanted port are shared with `self`.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind); `self` stays as it was.
    pub fn moved(&self, lanes: usize, port: u16, mark: u32) -> io::Result<Self> {
        // Each try starts at a port that the kernel holds free; with several lanes, the next may be taken.
        let tries = if port == 0 { 50 } else { 1 };
        let mut result = Err(Errno::EADDRINUSE.into());
        for _ in 0..tries {
            result = self.try_move(lanes, port, mark);
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AddrInUse) {
                break;
            }
        }
        result
    }

    fn try_move(&self, lanes: usize, port: u16, mark: u32) -> io::Result<Self> {
        let mut by_lane: Vec<Arc<UdpSocket>> = Vec::with_capacity(lanes);
        for lane in 0..lanes {
            let wanted = match by_lane.first() {
                None => port,
                Some(first) => {
                    let port = usize::from(first.port) + lane;
                    u16::try_from(port).map_err(|_| io::Error::from(Errno::EADDRINUSE))?
                }
            };
            let ours = self.by_lane.iter().find(|socket| wanted != 0 && socket.port == wanted);
            by_lane.push(match ours {
                Some(socket) => socket.clone(),
                None => Arc::new(UdpSocket::bind(wanted, mark)?),
            });
        }
        let moved = Self { by_lane, mark };
        // Last, because shared sockets are in use.
        if mark != self.mark
            && let Err(error) = moved.set_mark(mark)
        {
            let _ = self.set_mark(self.mark);
            return Err(error);
        }
        Ok(moved)
    }

    fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.by_lane.iter().try_for_each(|socket| socket.set_mark(mark))
    }

    /// The first port.
    pub fn port(&self) -> u16 {
        self.by_lane.first().map_or(0, |socket| socket.port)
    }

    /// The mark of outgoing datagrams.
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// The socket of a lane.
    pub fn lane(&self, lane: usize) -> &Arc<UdpSocket> {
        &self.by_lane[lane % self.by_lane.len()]
    }
}

/// Buffers for one batch of received datagrams.
pub struct Receiver {
    headers: MultiHeaders<SockaddrStorage>,
    bytes: Box<[u8]>,
    received: Vec<Option<(SocketAddr, usize)>>,
}

impl Receiver {
    /// Untouched memory costs nothing: datagrams of the usual size use one page of each slot.
    pub fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            bytes: vec![0; BATCH * SLOT].into_boxed_slice(),
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Receives what is there, up to a batch. Returns how many datagrams that were; 0 if there was none.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        let mut slots: [[IoSliceMut<'_>; 1]; BATCH] = {
            let mut chunks = self.bytes.chunks_exact_mut(SLOT);
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())])
        };
        let results = socket::recvmmsg(
            socket.fd.as_raw_fd(),
            &mut self.headers,
            slots.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        );
        match results {
            Ok(results) => self.received.extend(results.map(|message| {
                let from = message.address.as_ref().and_then(to_socket_addr)?;
                let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
                whole.then_some((from, message.bytes))
            })),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.received.len())
    }

    /// The datagrams of the last batch, with their sources.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.received
            .iter()
            .zip(self.bytes.chunks_exact(SLOT))
            .filter_map(|(received, slot)| received.map(|(from, len)| (from, &slot[..len])))
    }
}

/// Headers for one batch of datagrams to send.
pub struct Sender {
    headers: MultiHeaders<SockaddrStorage>,
    addresses: Vec<Option<SockaddrStorage>>,
}

impl Sender {
    /// Headers for batches of [`BATCH`] datagrams.
    pub fn new() -> Self {
        Self { headers: MultiHeaders::preallocate(BATCH, None), addresses: Vec::with_capacity(BATCH) }
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
        let mut items = batch.iter().peekable();
        let mut slices: Vec<[IoSlice<'_>; 1]> = Vec::with_capacity(batch.len().min(BATCH));
        while let Some((_, Destination { lane, .. })) = items.peek() {
            let lane = *lane;
            let socket = sockets.lane(lane);
            self.addresses.clear();
            slices.clear();
            while slices.len() < BATCH
                && let Some((bytes, destination)) = items.next_if(|(_, next)| next.lane == lane)
            {
                match socket.address(destination.to) {
                    Some(address) => {
                        self.addresses.push(Some(address));
                        slices.push([IoSlice::new(bytes)]);
                    }
                    None => counters.count(Io::NoRoute, 1),
                }
            }
            self.send_run(socket, &slices, counters);
        }
    }

    /// Sends datagrams by one socket. sendmmsg stops at the first that fails, and says why only if that is
    /// the first of all; so go on behind it.
    fn send_run(&mut self, socket: &UdpSocket, slices: &[[IoSlice<'_>; 1]], counters: &Counters) {
        let mut sent = 0;
        let mut waited = false;
        while sent < slices.len() {
            let result = socket::sendmmsg(
                socket.fd.as_raw_fd(),
                &mut self.headers,
                &slices[sent..],
                &self.addresses[sent..],
                [],
                MsgFlags::MSG_DONTWAIT,
            );
            match result.map(Iterator::count) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !waited => {
                    waited = true;
                    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    // Whatever comes of it, the next try shows it.
                    let _ = poll(&mut ready, PollTimeout::from(SEND_PATIENCE_MS));
                }
                Err(Errno::EAGAIN) => {
                    counters.count(Io::Congested, slices.len() - sent);
                    return;
                }
                Err(error) => {
                    tracing::debug!(error = error.desc(), "a datagram was not sent");
                    counters.count(Io::NoRoute, 1);
                    sent += 1;
                }
            }
        }
    }
}

fn to_socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        AddressFamily::Inet => address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())),
        AddressFamily::Inet6 => address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())),
        _ => None,
    }
}
