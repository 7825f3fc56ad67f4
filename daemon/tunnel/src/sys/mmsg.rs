//! Several UDP datagrams, each perhaps a run of segments, in one system call.
//!
//! nix has recvmmsg(2) and sendmmsg(2), but gives all messages of a call the same control messages; here each has its
//! own segment size. Kernel `include/uapi/linux/udp.h`: UDP_SEGMENT says into how long datagrams the kernel is to cut
//! one message, UDP_GRO of how long ones it has made one.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg with control messages")]

use std::io;
use std::mem::{offset_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
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

impl Address {
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

/// One control message with a number, as in cmsg(3): `struct cmsghdr`, then the number.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

const CONTROL_HEADER: usize = offset_of!(Control, value);
const _: () = assert!(CONTROL_HEADER == size_of::<libc::cmsghdr>(), "no gap where cmsg(3) has none");

impl Control {
    fn none() -> Self {
        // SAFETY: a cmsghdr consists of integers, for which zero is a value.
        Self { header: unsafe { zeroed() }, value: [0; 8] }
    }

    fn segment(size: u16) -> Self {
        let mut control = Self::none();
        control.header.cmsg_len = (CONTROL_HEADER + size_of::<u16>()) as _;
        control.header.cmsg_level = libc::SOL_UDP;
        control.header.cmsg_type = libc::UDP_SEGMENT;
        control.value[..2].copy_from_slice(&size.to_ne_bytes());
        control
    }

    /// The segment size that came with a message, if one did.
    fn received_segment(&self) -> Option<usize> {
        let [a, b, c, d, ..] = self.value;
        let is_one = self.header.cmsg_level == libc::SOL_UDP
            && self.header.cmsg_type == libc::UDP_GRO
            && self.header.cmsg_len == (CONTROL_HEADER + size_of::<i32>()) as _;
        let size = is_one.then(|| i32::from_ne_bytes([a, b, c, d]))?;
        usize::try_from(size).ok().filter(|size| *size > 0)
    }
}

/// Buffers for what one call receives.
pub struct Receiver {
    slot: usize,
    bytes: Box<[u8]>,
    addresses: Box<[Address]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// Of the last call: lengths, and whether a message was cut because its slot was too small.
    received: Vec<(usize, bool)>,
}

/// What was received as one message.
pub struct Received<'a> {
    /// The sender; `None` if it is of no family that is known.
    pub from: Option<SocketAddr>,
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
            controls: vec![Control::none(); slots].into_boxed_slice(),
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
            *control = Control::none();
            *iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = address.bytes.as_mut_ptr().cast();
            header.msg_namelen = address.bytes.len() as libc::socklen_t;
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut *control).cast();
            header.msg_controllen = size_of::<Control>() as _;
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
        self.received.extend(
            self.headers[..received]
                .iter()
                .map(|header| (header.msg_len as usize, header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0)),
        );
        Ok(received)
    }

    /// The messages of the last call.
    pub fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        let slots = self.bytes.chunks_exact(self.slot).zip(&self.addresses).zip(&self.controls);
        self.received.iter().zip(slots).map(|((len, truncated), ((bytes, address), control))| Received {
            from: address.to_socket_addr(),
            bytes: &bytes[..(*len).min(bytes.len())],
            segment: control.received_segment(),
            truncated: *truncated,
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
    /// Into how long datagrams the kernel is to cut it.
    pub segment: Option<u16>,
}

/// Headers for what one call sends.
pub struct Sender {
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Sender {
    /// Room for `messages` messages a call.
    pub fn new(messages: usize) -> Self {
        Self {
            controls: vec![Control::none(); messages].into_boxed_slice(),
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
            if let Some(segment) = message.segment {
                *control = Control::segment(segment);
                header.msg_control = (&raw mut *control).cast();
                header.msg_controllen = size_of::<Control>() as _;
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
