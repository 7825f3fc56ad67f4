//! Several UDP datagrams, each perhaps a run of segments, in one system call.
//!
//! nix has recvmmsg(2) and sendmmsg(2), but gives all messages of a call the same control messages; here each has its
//! own segment size and own address. Kernel `include/uapi/linux/udp.h`: UDP_SEGMENT says into how long datagrams the
//! kernel is to cut one message, UDP_GRO of how long ones it has made one. ipv6(7) and ip(7): IPV6_PKTINFO is our own
//! address, and on sockets of IPv4 alone IP_PKTINFO.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg with control messages")]

use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

use nix::errno::Errno;

/// A socket address as the kernel reads and writes it: `sockaddr_in`, or `sockaddr_in6`, the longer of the two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address {
    bytes: [u8; size_of::<libc::sockaddr_in6>()],
    len: libc::socklen_t,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (family, len) = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (libc::AF_INET, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (libc::AF_INET6, size_of::<libc::sockaddr_in6>())
            }
        };
        bytes[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
        Self { bytes, len: len as libc::socklen_t }
    }
}

/// `struct in_pktinfo`: an interface, our address as routes know it, and the one in the packet's header.
const PKTINFO: usize = 12;
const _: () = assert!(PKTINFO == size_of::<libc::in_pktinfo>());

impl Address {
    fn is_ipv4(&self) -> bool {
        self.len == size_of::<libc::sockaddr_in>() as libc::socklen_t
    }

    fn to_socket_addr(self) -> Option<SocketAddr> {
        let [family_a, family_b, port_a, port_b, ..] = self.bytes;
        let port = u16::from_be_bytes([port_a, port_b]);
        match i32::from(libc::sa_family_t::from_ne_bytes([family_a, family_b])) {
            libc::AF_INET => {
                let ip: [u8; 4] = self.bytes[4..8].try_into().ok()?;
                Some((Ipv4Addr::from(ip), port).into())
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = self.bytes[8..24].try_into().ok()?;
                let scope = u32::from_ne_bytes(self.bytes[24..28].try_into().ok()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
            }
            _ => None,
        }
    }
}

/// Control messages, as in cmsg(3): each a header (length, level, type) and what it says, padded to whole words.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Controls([u8; CONTROLS]);

const WORD: usize = size_of::<usize>();
const CONTROL_HEADER: usize = WORD + 2 * size_of::<libc::c_int>();
const _: () = assert!(CONTROL_HEADER == size_of::<libc::cmsghdr>());
/// A segment size and an address.
const CONTROLS: usize = 2 * CONTROL_HEADER + 8 + size_of::<libc::in6_pktinfo>().next_multiple_of(WORD);

impl Controls {
    const NONE: Self = Self([0; CONTROLS]);

    /// Writes one at `at`; returns where the next one goes.
    fn put(&mut self, at: usize, level: libc::c_int, kind: libc::c_int, value: &[u8]) -> usize {
        let len = CONTROL_HEADER + value.len();
        let mut put = |at: usize, bytes: &[u8]| self.0[at..at + bytes.len()].copy_from_slice(bytes);
        put(at, &len.to_ne_bytes());
        put(at + WORD, &level.to_ne_bytes());
        put(at + WORD + 4, &kind.to_ne_bytes());
        put(at + CONTROL_HEADER, value);
        (at + len).next_multiple_of(WORD)
    }

    /// What is said with a message to send. Returns its length.
    fn write(&mut self, segment: Option<u16>, from: Option<IpAddr>, to: &Address) -> usize {
        let mut len = 0;
        if let Some(segment) = segment {
            len = self.put(len, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if let (Some(IpAddr::V4(from)), true) = (from, to.is_ipv4()) {
            // The interface is left to the routes.
            let mut info = [0; PKTINFO];
            info[4..8].copy_from_slice(&from.octets());
            len = self.put(len, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        } else if let Some(from) = from {
            // `struct in6_pktinfo`: address, and an interface that is left to the routes.
            let mut info = [0; size_of::<libc::in6_pktinfo>()];
            let address = match from {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            info[..16].copy_from_slice(&address.octets());
            len = self.put(len, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        len
    }

    /// What was said with a received message, of which the kernel wrote `len` bytes.
    fn read(&self, len: usize) -> (Option<usize>, Option<IpAddr>) {
        let (mut segment, mut to) = (None, None);
        let mut rest = &self.0[..len.min(CONTROLS)];
        while let Some((header, _)) = rest.split_first_chunk::<CONTROL_HEADER>() {
            let number =
                |at: usize| i32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let len = header.first_chunk().map_or(0, |len| usize::from_ne_bytes(*len));
            let Some(value) = rest.get(CONTROL_HEADER..len) else { break };
            match (number(WORD), number(WORD + 4)) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = value.first_chunk().map(|size| i32::from_ne_bytes(*size));
                    segment = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    to = value.first_chunk::<16>().map(|address| Ipv6Addr::from(*address).to_canonical());
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = value.first_chunk::<PKTINFO>();
                    to = info.map(|[.., a, b, c, d]| Ipv4Addr::new(*a, *b, *c, *d).into());
                }
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(WORD)..).unwrap_or_default();
        }
        (segment, to)
    }
}

/// Buffers for what one call receives.
pub struct Receiver {
    slot: usize,
    bytes: Box<[u8]>,
    addresses: Box<[Address]>,
    controls: Box<[Controls]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    received: Vec<Length>,
}

/// How much of the buffers the last call filled.
struct Length {
    bytes: usize,
    controls: usize,
    truncated: bool,
}

/// What was received as one message.
pub struct Received<'a> {
    /// The sender; `None` if it is of no family that is known.
    pub from: Option<SocketAddr>,
    /// Which of our addresses it was sent to, if the socket tells (IPV6_RECVPKTINFO, IP_PKTINFO).
    pub to: Option<IpAddr>,
    /// One datagram, or several of equal length, of which the last may be shorter.
    pub bytes: &'a [u8],
    /// The length of the datagrams, if there may be several.
    pub segment: Option<usize>,
    /// Whether the end is missing.
    pub truncated: bool,
}

impl Receiver {
    /// Room for `slots` messages of `slot` bytes. Memory that was never received into costs nothing.
    pub fn new(slots: usize, slot: usize) -> Self {
        Self {
            slot,
            bytes: vec![0; slots * slot].into_boxed_slice(),
            addresses: vec![Address::default(); slots].into_boxed_slice(),
            controls: vec![Controls::NONE; slots].into_boxed_slice(),
            iovecs: vec![EMPTY; slots].into_boxed_slice(),
            headers: empty_headers(slots),
            received: Vec::with_capacity(slots),
        }
    }

    /// Receives what is there without waiting, up to `most` messages. Returns their number.
    ///
    /// # Errors
    /// Those of recvmmsg(2); EAGAIN if there is nothing.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        self.received.clear();
        let slots = self.bytes.chunks_exact_mut(self.slot).zip(&mut self.addresses).zip(&mut self.controls);
        let headers = self.iovecs.iter_mut().zip(&mut self.headers);
        let mut count = 0;
        for (((bytes, address), control), (iovec, header)) in slots.zip(headers).take(most) {
            *iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = address.bytes.as_mut_ptr().cast();
            header.msg_namelen = address.bytes.len() as libc::socklen_t;
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROLS as _;
            count += 1;
        }
        // SAFETY: the first `count` headers point to an iovec, an address and a control message each, all of the
        // lengths that they tell, exclusively borrowed and alive during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                null_mut(),
            )
        };
        let received = Errno::result(received)? as usize;
        self.received.extend(self.headers[..received].iter().map(|header| Length {
            bytes: header.msg_len as usize,
            controls: header.msg_hdr.msg_controllen as _,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }));
        Ok(received)
    }

    /// The messages of the last call.
    pub fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        let slots = self.bytes.chunks_exact(self.slot).zip(&self.addresses).zip(&self.controls);
        self.received.iter().zip(slots).map(|(length, ((bytes, address), controls))| {
            let (segment, to) = controls.read(length.controls);
            Received {
                from: address.to_socket_addr(),
                to,
                bytes: &bytes[..length.bytes.min(bytes.len())],
                segment,
                truncated: length.truncated,
            }
        })
    }
}

/// One message to send.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// One datagram, or several of `segment` bytes, of which the last may be shorter.
    pub bytes: &'a [u8],
    /// Where to.
    pub to: Address,
    /// From which of our addresses; `None` leaves it to the routes.
    pub from: Option<IpAddr>,
    /// Into how long datagrams the kernel is to cut it.
    pub segment: Option<u16>,
}

/// Headers for what one call sends.
pub struct Sender {
    controls: Box<[Controls]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Sender {
    /// Room for `messages` messages a call.
    pub fn new(messages: usize) -> Self {
        Self {
            controls: vec![Controls::NONE; messages].into_boxed_slice(),
            iovecs: vec![EMPTY; messages].into_boxed_slice(),
            headers: empty_headers(messages),
        }
    }

    /// Sends messages without waiting, in their order. Returns how many went: some may be left for another call.
    ///
    /// # Errors
    /// Those of sendmmsg(2), if the first one cannot be sent.
    pub fn send(&mut self, socket: BorrowedFd<'_>, messages: &[Message<'_>]) -> io::Result<usize> {
        let parts = self.iovecs.iter_mut().zip(&mut self.controls).zip(&mut self.headers);
        let mut count = 0;
        for (message, ((iovec, control), header)) in messages.iter().zip(parts) {
            *iovec = libc::iovec {
                iov_base: message.bytes.as_ptr().cast_mut().cast(),
                iov_len: message.bytes.len(),
            };
            let header = &mut header.msg_hdr;
            header.msg_name = message.to.bytes.as_ptr().cast_mut().cast();
            header.msg_namelen = message.to.len;
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_control = null_mut();
            header.msg_controllen = 0;
            let said = control.write(message.segment, message.from, &message.to);
            if said > 0 {
                header.msg_control = control.0.as_mut_ptr().cast();
                header.msg_controllen = said as _;
            }
            count += 1;
        }
        // SAFETY: the first `count` headers point to an iovec, an address and perhaps a control message each, of the
        // lengths that they tell and alive during the call, in which the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_DONTWAIT as _)
        };
        Ok(Errno::result(sent)? as usize)
    }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: null_mut(), iov_len: 0 };

fn empty_headers(count: usize) -> Box<[libc::mmsghdr]> {
    // SAFETY: a mmsghdr consists of integers and pointers, for which zero is a value.
    let empty: libc::mmsghdr = unsafe { zeroed() };
    vec![empty; count].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_survive_their_bytes() {
        for segment in [None, Some(1452)] {
            for from in [None, Some("192.0.2.1"), Some("2001:db8::1")] {
                let from: Option<IpAddr> = from.map(|from| from.parse().unwrap());
                let mut controls = Controls::NONE;
                let len = controls.write(segment, from, &address("[2001:db8::2]:1"));
                assert_eq!(controls.read(len).1, from);
                assert_eq!(len > 0, segment.is_some() || from.is_some());
            }
        }
    }

    fn address(text: &str) -> Address {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn sockets_of_ipv4_have_control_messages_of_their_own() {
        let mut controls = Controls::NONE;
        let len =
            controls.write(Some(1452), Some(Ipv4Addr::new(192, 0, 2, 1).into()), &address("192.0.2.2:1"));
        let sent = &controls.0[CONTROL_HEADER + 8..len];
        assert_eq!(sent[WORD..CONTROL_HEADER], [0, 0, 0, 0, 8, 0, 0, 0], "IPPROTO_IP, IP_PKTINFO");
        assert_eq!(sent[CONTROL_HEADER + 4..CONTROL_HEADER + 8], [192, 0, 2, 1], "ipi_spec_dst");
        // The kernel fills in both; the address in the header is the one that was asked.
        let mut info = [0; PKTINFO];
        info[8..].copy_from_slice(&[192, 0, 2, 7]);
        let len = controls.put(0, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        assert_eq!(controls.read(len), (None, Some(Ipv4Addr::new(192, 0, 2, 7).into())));
    }

    #[test]
    fn a_segment_size_is_read_behind_an_address() {
        let mut controls = Controls::NONE;
        let at = controls.write(None, Some(Ipv4Addr::LOCALHOST.into()), &address("[2001:db8::2]:1"));
        let len = controls.put(at, libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        assert_eq!(controls.read(len), (Some(1452), Some(Ipv4Addr::LOCALHOST.into())));
        assert_eq!(controls.read(len - 8), (None, Some(Ipv4Addr::LOCALHOST.into())), "cut");
        controls.0[..WORD].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(controls.read(len), (None, None), "a length beyond the buffer");
        controls.0[..WORD].fill(0);
        assert_eq!(controls.read(len), (None, None), "no length at all");
    }

    #[test]
    fn addresses_survive_their_bytes() {
        for text in ["192.0.2.1:65535", "[2001:db8::1]:1", "[fe80::1%7]:51820"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Address::from(address).to_socket_addr(), Some(address));
        }
        assert_eq!(Address::default().to_socket_addr(), None);
    }
}
