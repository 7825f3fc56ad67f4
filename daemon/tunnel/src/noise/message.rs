//! The layout of the four messages (whitepaper section 5.4): reading and writing what is not encrypted.
//!
//! ```text
//!               0     4        8          12           16
//!   initiation  │ 1   │ sender │ ephemeral 32, static 48, timestamp 28 │ mac1 16 │ mac2 16 │         148
//!   response    │ 2   │ sender │ receiver │ ephemeral 32, nothing 16   │ mac1 16 │ mac2 16 │          92
//!   cookie      │ 3   │ receiver │ nonce 24 │ cookie 32 │                                            64
//!   data        │ 4   │ receiver │ counter 8           │ packet n │ tag 16 │                     32 + n
//! ```
//!
//! Numbers are little-endian. The type is one byte with three reserved ones behind it, which are zero: like the kernel
//! (`receive.c`), we compare all four, and the lengths of all but data exactly.

/// The length of an initiation, in bytes.
pub const INITIATION: usize = 148;
/// The length of a response, in bytes.
pub const RESPONSE: usize = 92;
/// The length of a cookie reply, in bytes.
pub const COOKIE_REPLY: usize = 64;
/// What precedes the packet in a data message, in bytes.
pub const DATA_HEADER: usize = 16;
/// The length of an authentication tag, in bytes.
pub const TAG: usize = 16;
/// What a data message has around a packet, in bytes.
pub const DATA_OVERHEAD: usize = DATA_HEADER + TAG;
/// The length of mac1 and of mac2, in bytes.
pub const MAC: usize = 16;
/// The length of a cookie reply's nonce, in bytes.
pub const COOKIE_NONCE: usize = 24;

/// Where the Noise message is in an initiation.
const INITIATION_NOISE: std::ops::Range<usize> = 8..INITIATION - 2 * MAC;
/// Where it is in a response.
const RESPONSE_NOISE: std::ops::Range<usize> = 12..RESPONSE - 2 * MAC;

const TYPE_INITIATION: u32 = 1;
const TYPE_RESPONSE: u32 = 2;
const TYPE_COOKIE_REPLY: u32 = 3;
const TYPE_DATA: u32 = 4;

/// A message of which the form is right, and nothing else is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Somebody wants keys.
    Initiation(Initiation<'a>),
    /// The answer to that.
    Response(Response<'a>),
    /// The answer of somebody under load.
    CookieReply(CookieReply<'a>),
    /// A packet, or nothing: a keepalive.
    Data(Data<'a>),
}

/// See [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiation<'a>(&'a [u8; INITIATION]);

/// See [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a>(&'a [u8; RESPONSE]);

/// See [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply<'a>(&'a [u8; COOKIE_REPLY]);

/// See [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    header: &'a [u8; DATA_HEADER],
    sealed: &'a [u8],
}

/// A message that ends in two MACs.
pub trait Handshake {
    /// All of it.
    fn bytes(&self) -> &[u8];

    /// By which index its sender wants to be answered.
    fn sender(&self) -> u32;
}

impl Handshake for Initiation<'_> {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn sender(&self) -> u32 {
        number(self.0, 4)
    }
}

impl Handshake for Response<'_> {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn sender(&self) -> u32 {
        number(self.0, 4)
    }
}

impl<'a> Message<'a> {
    /// What a datagram is; `None` if it is nothing of WireGuard's.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (kind, _) = datagram.split_first_chunk()?;
        match u32::from_le_bytes(*kind) {
            TYPE_INITIATION => datagram.try_into().ok().map(|bytes| Self::Initiation(Initiation(bytes))),
            TYPE_RESPONSE => datagram.try_into().ok().map(|bytes| Self::Response(Response(bytes))),
            TYPE_COOKIE_REPLY => datagram.try_into().ok().map(|bytes| Self::CookieReply(CookieReply(bytes))),
            TYPE_DATA => Data::parse(datagram).map(Self::Data),
            _ => None,
        }
    }
}

impl<'a> Initiation<'a> {
    pub(super) fn noise(&self) -> &'a [u8] {
        &self.0[INITIATION_NOISE]
    }

    /// Writes one; `noise` fills in the Noise message. The MACs are left for [`mac`](super::mac).
    pub(super) fn write<E>(
        sender: u32,
        noise: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<[u8; INITIATION], E> {
        let mut bytes = [0; INITIATION];
        put(&mut bytes, 0, TYPE_INITIATION);
        put(&mut bytes, 4, sender);
        noise(&mut bytes[INITIATION_NOISE])?;
        Ok(bytes)
    }
}

impl<'a> Response<'a> {
    /// The index of the initiation that it answers.
    pub fn receiver(&self) -> u32 {
        number(self.0, 8)
    }

    pub(super) fn noise(&self) -> &'a [u8] {
        &self.0[RESPONSE_NOISE]
    }

    /// As [`Initiation::write`].
    pub(super) fn write<E>(
        sender: u32,
        receiver: u32,
        noise: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<[u8; RESPONSE], E> {
        let mut bytes = [0; RESPONSE];
        put(&mut bytes, 0, TYPE_RESPONSE);
        put(&mut bytes, 4, sender);
        put(&mut bytes, 8, receiver);
        noise(&mut bytes[RESPONSE_NOISE])?;
        Ok(bytes)
    }
}

impl<'a> CookieReply<'a> {
    /// The sender index of the handshake message that it answers.
    pub fn receiver(&self) -> u32 {
        number(self.0, 4)
    }

    pub(super) fn nonce(&self) -> &'a [u8] {
        &self.0[8..8 + COOKIE_NONCE]
    }

    pub(super) fn sealed(&self) -> &'a [u8] {
        &self.0[8 + COOKIE_NONCE..]
    }

    /// Writes one around what is sealed in it, cookie and tag.
    pub(super) fn write(
        receiver: u32,
        nonce: &[u8; COOKIE_NONCE],
        cookie: &[u8; MAC],
        tag: &[u8; TAG],
    ) -> [u8; COOKIE_REPLY] {
        let mut bytes = [0; COOKIE_REPLY];
        put(&mut bytes, 0, TYPE_COOKIE_REPLY);
        put(&mut bytes, 4, receiver);
        bytes[8..8 + COOKIE_NONCE].copy_from_slice(nonce);
        bytes[COOKIE_REPLY - TAG - MAC..COOKIE_REPLY - TAG].copy_from_slice(cookie);
        bytes[COOKIE_REPLY - TAG..].copy_from_slice(tag);
        bytes
    }
}

impl<'a> Data<'a> {
    /// What a datagram that begins like data is; its type is not looked at.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (header, sealed) = datagram.split_first_chunk()?;
        (sealed.len() >= TAG).then_some(Self { header, sealed })
    }

    /// The index of the session that it is for.
    pub fn receiver(&self) -> u32 {
        number(self.header, 4)
    }

    /// Its number among the messages under its key.
    pub fn counter(&self) -> u64 {
        u64::from(number(self.header, 8)) | u64::from(number(self.header, 12)) << 32
    }

    /// The packet, encrypted, and its tag.
    pub(super) fn sealed(&self) -> &'a [u8] {
        self.sealed
    }

    /// What precedes a packet.
    pub(super) fn header(receiver: u32, counter: u64) -> [u8; DATA_HEADER] {
        let mut bytes = [0; DATA_HEADER];
        put(&mut bytes, 0, TYPE_DATA);
        put(&mut bytes, 4, receiver);
        bytes[8..].copy_from_slice(&counter.to_le_bytes());
        bytes
    }
}

/// The number at an offset that the type of `bytes` has.
fn number<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|place| bytes[at + place]))
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram of a length that begins as a message of a type.
    fn datagram(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|place| place as u8).collect();
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes
    }

    #[test]
    fn each_type_has_its_length() {
        for kind in 0..=6 {
            for len in 4..200 {
                let right = match kind {
                    1 => len == INITIATION,
                    2 => len == RESPONSE,
                    3 => len == COOKIE_REPLY,
                    4 => len >= DATA_OVERHEAD,
                    _ => false,
                };
                assert_eq!(Message::parse(&datagram(kind, len)).is_some(), right, "type {kind}, {len} bytes");
            }
        }
        assert_eq!(Message::parse(&[]), None);
        assert_eq!(Message::parse(&[4, 0, 0]), None);
    }

    #[test]
    fn reserved_bytes_are_zero() {
        for (kind, len) in [(1, INITIATION), (2, RESPONSE), (3, COOKIE_REPLY), (4, DATA_OVERHEAD)] {
            for reserved in 1..4 {
                let mut bytes = datagram(kind, len);
                bytes[reserved] = 1;
                assert_eq!(Message::parse(&bytes), None);
            }
        }
    }

    #[test]
    fn fields_are_where_the_whitepaper_has_them() {
        let bytes = datagram(1, 148);
        let Some(Message::Initiation(initiation)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((initiation.sender(), initiation.noise().len()), (0x0706_0504, 32 + 48 + 28));
        assert_eq!(initiation.noise()[0], 8);
        let bytes = datagram(2, 92);
        let Some(Message::Response(response)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((response.sender(), response.receiver()), (0x0706_0504, 0x0b0a_0908));
        assert_eq!((response.noise()[0], response.noise().len()), (12, 32 + 16));
        let bytes = datagram(3, 64);
        let Some(Message::CookieReply(cookie)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((cookie.receiver(), cookie.nonce()[0], cookie.sealed()[0]), (0x0706_0504, 8, 32));
        let bytes = datagram(4, 33);
        let Some(Message::Data(data)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((data.receiver(), data.counter()), (0x0706_0504, 0x0f0e_0d0c_0b0a_0908));
        assert_eq!((data.sealed()[0], data.sealed().len()), (16, 17));
    }

    #[test]
    fn what_is_written_is_read() {
        let fill = |noise: &mut [u8]| {
            noise.fill(7);
            Ok::<_, ()>(())
        };
        let bytes = Initiation::write(1, fill).unwrap();
        let Some(Message::Initiation(initiation)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((initiation.sender(), initiation.noise()), (1, &[7; 108][..]));
        assert_eq!(bytes[116..], [0; 32]);
        let bytes = Response::write(1, 2, fill).unwrap();
        let Some(Message::Response(response)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((response.sender(), response.receiver(), response.noise()), (1, 2, &[7; 48][..]));
        assert_eq!(bytes[60..], [0; 32]);
        let bytes = CookieReply::write(3, &[4; 24], &[5; 16], &[6; 16]);
        let Some(Message::CookieReply(cookie)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((cookie.receiver(), cookie.nonce()), (3, &[4; 24][..]));
        assert_eq!(cookie.sealed(), [[5; 16], [6; 16]].concat());
        let bytes = [&Data::header(8, u64::MAX - 1)[..], &[0; 16]].concat();
        let Some(Message::Data(data)) = Message::parse(&bytes) else { panic!() };
        assert_eq!((data.receiver(), data.counter()), (8, u64::MAX - 1));
    }
}
