//! UDP sockets, one per lane.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, sockopt};

use crate::sys::{self, mmsg::Address};

/// Wanted size of the kernel's buffers, in bytes: 30 ms at 1 Gbit/s, so that a lane that had to wait for
/// the processor does not lose what came meanwhile.
const SOCKET_BUFFER: usize = 4 << 20;

/// A buffer of less than this is worth a word: it holds less than a lane may have to wait.
const SMALL_BUFFER: usize = SOCKET_BUFFER / 2;

/// One UDP socket, for both address families where the system has both.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    port: u16,
    ipv6: bool,
    /// Whether the kernel cuts runs of datagrams apart (UDP_SEGMENT, since Linux 4.18).
    segmentation: bool,
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
            socket::setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            socket::setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        }
        sys::socket::allow_fragments(fd.as_fd(), ipv6)?;
        set_buffers(&fd);
        // Without (before Linux 5.0) every datagram comes on its own, and that is all.
        if let Err(error) = socket::setsockopt(&fd, sockopt::UdpGroSegment, &true) {
            tracing::info!(%error, "datagrams are not received in runs");
        }
        // 0 is off: each run tells its own size.
        let segmentation = socket::setsockopt(&fd, sockopt::UdpGsoSegment, &0);
        if let Err(error) = segmentation {
            tracing::info!(%error, "datagrams are not sent in runs");
        }
        let any: SocketAddr = match ipv6 {
            true => (Ipv6Addr::UNSPECIFIED, port).into(),
            false => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(any))?;
        let bound: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
        let port = to_socket_addr(&bound).map_or(0, |address| address.port());
        let socket = Self { fd, port, ipv6, segmentation: segmentation.is_ok() };
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }

    fn set_mark(&self, mark: u32) -> io::Result<()> {
        Ok(socket::setsockopt(&self.fd, sockopt::Mark, &mark)?)
    }

    /// Bytes in the smaller of its two buffers, as they were asked for: the kernel tells twice as many, since it counts
    /// what it needs itself.
    fn buffer(&self) -> io::Result<usize> {
        let receiving = socket::getsockopt(&self.fd, sockopt::RcvBuf)?;
        let sending = socket::getsockopt(&self.fd, sockopt::SndBuf)?;
        Ok(receiving.min(sending) / 2)
    }

    /// From where datagrams leave that are to come from `from`: an IPv6 address is not one where there is no IPv6.
    pub fn source(&self, from: Option<IpAddr>) -> Option<IpAddr> {
        from.filter(|from| self.ipv6 || from.is_ipv4())
    }

    /// How the kernel wants to see `to` on this socket. `None`: an IPv6 address where there is no IPv6.
    pub fn address(&self, to: SocketAddr) -> Option<Address> {
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

/// Large buffers: beyond the system's limit as root, up to it otherwise. Small ones only cost speed, and are told of
/// ([`Sockets::small_buffer`]).
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

    /// Whether runs of datagrams can be sent as such.
    pub fn segmentation(&self) -> bool {
        self.by_lane.iter().all(|socket| socket.segmentation)
    }

    /// Bytes in the buffers that the kernel has granted, where they are far fewer than wanted.
    pub fn small_buffer(&self) -> Option<usize> {
        let granted = self.by_lane.iter().filter_map(|socket| socket.buffer().ok()).min();
        granted.filter(|granted| *granted < SMALL_BUFFER)
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

fn to_socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        AddressFamily::Inet => address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())),
        AddressFamily::Inet6 => address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::runtime::counters::Counters;
    use crate::runtime::receiver::Receiver;
    use crate::sys::mmsg::{self, Message};

    #[test]
    fn buffers_that_could_not_be_had_are_noticed() {
        let sockets = Sockets::bind(2, 0, 0).unwrap();
        let granted = sockets.lane(0).buffer().unwrap();
        // The tests may run without CAP_NET_ADMIN.
        assert!(granted <= SOCKET_BUFFER);
        assert_eq!(sockets.small_buffer(), (granted < SMALL_BUFFER).then_some(granted));
        socket::setsockopt(&sockets.lane(1).fd, sockopt::RcvBuf, &(64 << 10)).unwrap();
        assert_eq!(sockets.small_buffer(), Some(64 << 10));
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked_with_and_without_ipv6() {
        for ipv6 in [true, false] {
            let socket = UdpSocket::bind_family(0, 0, ipv6).unwrap();
            let asker = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            asker.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let asked: SocketAddr = ([127, 0, 0, 77], socket.port).into();
            asker.send_to(b"question", asked).unwrap();
            poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000u16)).unwrap();
            let (mut receiver, counters) = (Receiver::new(), Counters::default());
            assert_eq!(receiver.receive(&socket).unwrap(), 1);
            let path = receiver.runs(&counters).next().unwrap().path;
            assert_eq!(path.local.map(|ip| ip.to_canonical()), Some(asked.ip()), "IPv6: {ipv6}");

            let to = socket.address(path.remote).unwrap();
            let answer = Message { bytes: b"answer", to, from: socket.source(path.local), segment: None };
            assert_eq!(mmsg::Sender::new(1).send(socket.as_fd(), &[answer]).unwrap(), 1);
            assert_eq!(asker.recv_from(&mut [0; 16]).unwrap(), (6, asked), "IPv6: {ipv6}");
        }
    }
}
