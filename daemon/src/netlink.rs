//! Netlink: the frames of what is asked of the kernel, and of what it answers (`linux/netlink.h`, [`netlink(7)`]).
//!
//! Routes and the elements of nftables' sets come by the ten thousand. The crate `rtnetlink` asks for one thing at a time
//! and makes a tree of types out of each answer, and `nft` turns each element into text; with thousands of nodes both take
//! most of the time of a look. Here are dumps, of which each message is handed on as bytes, and requests of which many go
//! in one call. What comes in small numbers, addresses and rules, goes the same way, for the sake of what goes wrong: an
//! answer that the kernel had no room for is an error here, and for `rtnetlink` 0.24 one that never comes.
//!
//! The kernel answers within the system call that asks (`netlink_unicast_kernel`), so nothing here waits: an
//! answer that is not there yet will never come.
//!
//! [`netlink(7)`]: https://man7.org/linux/man-pages/man7/netlink.7.html

#[cfg(test)]
mod tests;

use std::io;

use netlink_packet_core::Emitable;
use netlink_sys::SocketAddr;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use zeroize::Zeroize as _;

/// Room for one answer: the kernel's dumps come in pieces of at most 32 KiB (`netlink_dump`).
const ANSWER: usize = 64 << 10;

/// How many requests go in one call, at most: the refusals of all of them, each at most 1280 bytes of the kernel's
/// memory, fit into a queue of the system's usual 208 KiB (`net.core.rmem_default`).
const BATCH: usize = 128;

/// How often a dump is started again because what it lists changed meanwhile, and a system call because a signal came.
const TRIES: usize = 8;

/// How often the kernel is asked when it has no memory for a request, or its answer found no room.
pub const ATTEMPTS: usize = 3;

const HEADER: usize = 16;
const NLA_HEADER: usize = 4;

/// The length of a message or attribute with its padding (NLMSG_ALIGN, NLA_ALIGN).
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// One request, or one of many: its bytes, and its flags.
pub struct Request(Vec<u8>, i32);

impl Request {
    /// A request of some kind with the fixed header that its family has.
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        // Flags, number, and the sender's port, which the kernel knows.
        bytes.extend_from_slice(&[0; 2 + 4 + 4]);
        bytes.extend_from_slice(header);
        bytes.resize(aligned(bytes.len()), 0);
        Self(bytes, flags)
    }

    /// A request of some kind that says what a typed message does.
    pub fn of(kind: u16, flags: i32, message: &impl Emitable) -> Self {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        Self::new(kind, flags, &bytes)
    }

    /// Adds an attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&((NLA_HEADER + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(aligned(self.0.len()), 0);
    }

    /// Adds an attribute that ends with a zero byte.
    pub fn put_name(&mut self, kind: u16, name: &str) {
        self.put(kind, &[name.as_bytes(), &[0]].concat());
    }

    /// Adds an attribute that is made of attributes. All of them together must stay below 64 KiB.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.put(kind | libc::NLA_F_NESTED as u16, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Overwrites it, where it held a secret that was put into it last: what is added later may move the rest, and
    /// leave a copy behind.
    pub fn wipe(&mut self) {
        self.0.zeroize();
    }

    /// Its length in bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// The bytes to send, under this number and with more flags.
    fn finish(&mut self, sequence: u32, flags: i32) -> &[u8] {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = self.1 | flags | libc::NLM_F_REQUEST;
        self.0[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// What carries messages to the kernel, and its answers.
pub trait Wire {
    /// Sends all bytes in one piece; returns how many were taken.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Puts the next piece of an answer, or as much of it as there is room for, into an empty buffer; returns its whole
    /// length.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<usize>;

    /// Has room made for so many bytes, where that is allowed.
    fn make_room(&self, bytes: usize);
}

impl Wire for netlink_sys::Socket {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_to(bytes, &SocketAddr::new(0, 0), 0)
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.recv(buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC)
    }

    fn make_room(&self, bytes: usize) {
        // Beyond the system's limit, for which NET_ADMIN of the whole machine is needed; most requests are short.
        let _ = setsockopt(self, sockopt::SndBufForce, &(bytes * 2));
    }
}

/// A socket to the kernel of the network namespace it was opened in.
pub struct Socket<W = netlink_sys::Socket> {
    socket: W,
    sequence: u32,
    buffer: Vec<u8>,
    counts: Counts,
}

/// What went over a socket since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were sent.
    pub sent: u64,
    /// Lists that were begun again, because what they list changed meanwhile.
    pub interrupted: u64,
}

impl Socket {
    /// Opens a socket of one protocol (NETLINK_ROUTE, NETLINK_NETFILTER).
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        // An error need not quote the request.
        socket.set_cap_ack(true)?;
        // Makes rtnetlink filter dumps by table, so that a node's other routes cost nothing.
        socket.set_netlink_get_strict_chk(true)?;
        // Where the system's default is small. Not refused, but cut to what the system allows (socket(7)).
        let _ = setsockopt(&socket, sockopt::SndBuf, &(2 * ANSWER));
        Ok(Self::over(socket))
    }
}

impl<W: Wire> Socket<W> {
    /// A socket that is something else.
    pub(crate) fn over(socket: W) -> Self {
        Self { socket, sequence: 0, buffer: Vec::with_capacity(ANSWER), counts: Counts::default() }
    }

    /// What went over it so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Lists what a request asks for. Each message, as the bytes behind its netlink header, is added to a collection
    /// by `each`; what changes while it is listed is listed again from the start.
    pub fn dump<C: Default>(
        &mut self,
        request: &mut Request,
        mut each: impl FnMut(&mut C, &[u8]),
    ) -> io::Result<C> {
        for _ in 0..TRIES {
            let mut collection = C::default();
            if self.ask(request, libc::NLM_F_DUMP, |message| each(&mut collection, message))? {
                return Ok(collection);
            }
            self.counts.interrupted += 1;
        }
        Err(io::Error::other(format!("it changed while it was read, {TRIES} times in a row")))
    }

    /// Overwrites the last answer, where it held a secret.
    pub fn wipe(&mut self) {
        self.buffer.zeroize();
    }

    /// Asks for one thing, or does it; the request is sent from where it lies.
    pub fn get<C: Default>(
        &mut self,
        request: &mut Request,
        mut each: impl FnMut(&mut C, &[u8]),
    ) -> io::Result<C> {
        let mut collection = C::default();
        self.ask(request, libc::NLM_F_ACK, |message| each(&mut collection, message))?;
        Ok(collection)
    }

    /// Sends requests, many in one call, and says which of them were refused, by their numbers.
    pub fn change(&mut self, requests: &mut [Request]) -> io::Result<Vec<(usize, io::Error)>> {
        let mut refused = Vec::new();
        for (number, batch) in requests.chunks_mut(BATCH).enumerate() {
            let errors = self.transact(batch, batch.len() - 1)?;
            refused.extend(errors.into_iter().map(|(index, error)| (number * BATCH + index, error)));
        }
        Ok(refused)
    }

    /// Sends requests in one call, and says which of them were refused. Refusals come unasked; that the request
    /// number `last` is answered in any case tells that they have all been seen.
    pub fn transact(&mut self, requests: &mut [Request], last: usize) -> io::Result<Vec<(usize, io::Error)>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(requests.iter().map(Request::size).sum());
        for (index, request) in requests.iter_mut().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = if index == last { libc::NLM_F_ACK } else { 0 };
            bytes.extend_from_slice(request.finish(self.sequence, flags));
        }
        self.socket.make_room(bytes.len());
        self.send(&bytes)?;
        self.counts.sent += requests.len() as u64;
        let (mut refused, mut seen) = (Vec::new(), false);
        while !seen {
            let received = self.receive(|message| {
                let index = message.sequence.wrapping_sub(first) as usize;
                // Answers to what was asked before, and given up.
                if index >= requests.len() {
                    return;
                }
                seen |= index == last;
                if let Some(errno) = message.errno().filter(|errno| *errno != 0) {
                    refused.push((index, io::Error::from_raw_os_error(errno)));
                }
            });
            match received {
                // Refused as a whole, for want of rights.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !refused.is_empty() => break,
                received => received?,
            }
        }
        Ok(refused)
    }

    /// Asks, and hands on what is answered; says whether that was of one piece.
    fn ask(&mut self, request: &mut Request, flags: i32, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.send(request.finish(sequence, flags))?;
        self.counts.sent += 1;
        let (mut end, mut whole) = (None, true);
        while end.is_none() {
            self.receive(|message| {
                // Answers to what was asked before, and given up.
                if message.sequence != sequence {
                    return;
                }
                whole &= message.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                match message.errno() {
                    Some(errno) => end = Some(errno),
                    None => each(message.body),
                }
            })?;
        }
        match end {
            Some(errno) if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(whole),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = uninterrupted(|| self.socket.send(bytes))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("netlink took only a part")) }
    }

    /// Receives one piece of an answer, which holds several messages.
    fn receive(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        let length = uninterrupted(|| {
            self.buffer.clear();
            self.socket.receive(&mut self.buffer)
        })?;
        if length > self.buffer.len() {
            return Err(io::Error::other(format!("netlink answers with {length} bytes at once")));
        }
        let mut rest = &self.buffer[..];
        while let Some((message, after)) = Message::first(rest) {
            each(message);
            rest = after;
        }
        Ok(())
    }
}

/// A system call, again if a signal came first.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    call()
}

/// Asks again while the kernel has no memory for the question, was interrupted, or its answer found no room. In the last
/// case it may have done already what it is asked for: that must do no harm, done twice.
pub fn patiently<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match ask() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => {}
            result => return result,
        }
    }
    ask()
}

/// One message as it came.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first message of an answer, and the rest.
    fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = u32_at(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        let message =
            Self { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)?, body };
        Some((message, bytes.get(aligned(length)..).unwrap_or_default()))
    }

    /// What the end of an answer says: 0, or why there is none. A dump can fail after it began, too.
    fn errno(&self) -> Option<i32> {
        let ends = [libc::NLMSG_ERROR, libc::NLMSG_DONE].contains(&i32::from(self.kind));
        ends.then(|| u32_at(self.body, 0).unwrap_or_default().wrapping_neg() as i32)
    }
}

/// The attributes in `bytes`: kind, without flags, and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(NLA_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A number of 32 bits in the machine's order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
