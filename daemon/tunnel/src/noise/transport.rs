//! A session: data under the keys of one handshake (whitepaper section 5.4.6).
//!
//! ```text
//!              0        16                    16+n      32+n
//!   to seal    │  room   │ packet             │  room   │          any bytes in the room
//!   sealed     │ header  │ ciphertext         │  tag    │
//!   opened               │ packet             │                    elsewhere
//! ```

use std::fmt;

use super::Error;
use super::aead::Key;
use super::handshake::Keys;
use super::message::{DATA_HEADER, DATA_OVERHEAD, Data, TAG};
use super::replay::{WINDOW, Window};

/// After so many messages, new keys are to be asked for (whitepaper section 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// From this counter on, nothing is sent or received (whitepaper section 6.1; kernel `messages.h`).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - WINDOW;

/// See the module's text.
pub struct Transport {
    sending: Key,
    receiving: Key,
    local_index: u32,
    peer_index: u32,
    /// The counter of the next message.
    next: u64,
    received: Window,
}

impl Transport {
    /// The session under these keys, of which nothing was used.
    pub fn new(keys: &Keys) -> Self {
        Self {
            sending: Key::new(&keys.sending),
            receiving: Key::new(&keys.receiving),
            local_index: keys.local_index,
            peer_index: keys.peer_index,
            next: 0,
            received: Window::default(),
        }
    }

    /// The index under which the peer sends.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Whether so much was sent that new keys are to be asked for.
    pub fn wants_new_keys(&self) -> bool {
        self.next >= REKEY_AFTER_MESSAGES
    }

    /// Seals the packet of `len` bytes that lies in `buffer` behind [`DATA_HEADER`] bytes of room, with [`TAG`] bytes of
    /// room behind it. Returns how many of the buffer's bytes are the message. No bytes are a keepalive.
    ///
    /// # Errors
    /// [`Error::WornOut`], [`Error::NoRoom`]; then no counter was used.
    pub fn seal(&mut self, buffer: &mut [u8], len: usize) -> Result<usize, Error> {
        let end = len.checked_add(DATA_OVERHEAD).ok_or(Error::NoRoom)?;
        let message = buffer.get_mut(..end).ok_or(Error::NoRoom)?;
        let (header, text) = message.split_first_chunk_mut::<DATA_HEADER>().ok_or(Error::NoRoom)?;
        let (text, tag) = text.split_last_chunk_mut::<TAG>().ok_or(Error::NoRoom)?;
        if self.next >= REJECT_AFTER_MESSAGES {
            return Err(Error::WornOut);
        }
        let counter = self.next;
        self.next += 1;
        *tag = self.sending.seal(counter, text)?;
        *header = Data::header(self.peer_index, counter);
        Ok(end)
    }

    /// Seals a packet that lies elsewhere into `out`. It is copied first: the AEAD encrypts in place only.
    ///
    /// # Errors
    /// Those of [`seal`](Self::seal).
    pub fn seal_from(&mut self, packet: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let room = out.get_mut(DATA_HEADER..).and_then(|room| room.get_mut(..packet.len()));
        room.ok_or(Error::NoRoom)?.copy_from_slice(packet);
        self.seal(out, packet.len())
    }

    /// Opens data into the beginning of `out`, which needs room for the packet alone. The packet may be empty (a keepalive), or
    /// padded; that there is one in it is for the caller to see.
    ///
    /// # Errors
    /// Then it is to be dropped, and what was written is nothing.
    pub fn open_into<'a>(&mut self, data: &Data<'_>, out: &'a mut [u8]) -> Result<&'a mut [u8], Error> {
        let counter = self.counter(data)?;
        let (text, tag) = data.sealed().split_last_chunk::<TAG>().ok_or(Error::Data)?;
        let out = out.get_mut(..text.len()).ok_or(Error::NoRoom)?;
        out.copy_from_slice(text);
        self.receiving.open(counter, out, tag)?;
        self.received.note(counter);
        Ok(out)
    }

    /// The counter of a message, if it may be taken.
    fn counter(&self, data: &Data<'_>) -> Result<u64, Error> {
        if data.receiver() != self.local_index {
            return Err(Error::Index);
        }
        let counter = data.counter();
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(Error::WornOut);
        }
        if !self.received.is_new(counter) {
            return Err(Error::Replay);
        }
        Ok(counter)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { local_index, peer_index, next, .. } = self;
        to.debug_struct("Transport")
            .field("local_index", local_index)
            .field("peer_index", peer_index)
            .field("next", next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Transport {
    /// Opens a whole datagram, which need not be one of data.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Vec<u8>, Error> {
        let data = Data::parse(datagram).ok_or(Error::Data)?;
        let mut out = vec![0; datagram.len()];
        self.open_into(&data, &mut out).map(|packet| packet.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::noise::message::Message;

    /// The two ends of a session.
    fn pair() -> (Transport, Transport) {
        let (one, other) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
        let a = Keys { local_index: 7, peer_index: 8, sending: one.clone(), receiving: other.clone() };
        let b = Keys { local_index: 8, peer_index: 7, sending: other, receiving: one };
        (Transport::new(&a), Transport::new(&b))
    }

    fn sealed(from: &mut Transport, packet: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0xaa; packet.len() + DATA_OVERHEAD];
        assert_eq!(from.seal_from(packet, &mut datagram), Ok(datagram.len()));
        datagram
    }

    #[test]
    fn packets_of_every_length_pass_by_either_way() {
        let (mut a, mut b) = pair();
        for len in (0..200).chain([1419, 1420, 65_503]) {
            let packet: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            // Room of other content, and a buffer that goes on.
            let mut buffer = [&[0xaa; DATA_HEADER], &packet[..], &[0xbb; TAG + 3]].concat();
            let end = a.seal(&mut buffer, len).unwrap();
            assert_eq!(end, len + DATA_OVERHEAD);
            assert_eq!(buffer[end..], [0xbb; 3]);
            assert_eq!(b.open(&buffer[..end]).unwrap(), packet);
            let datagram = sealed(&mut b, &packet);
            let Some(Message::Data(data)) = Message::parse(&datagram) else { panic!() };
            let mut out = vec![0xcc; len + 3];
            assert_eq!(a.open_into(&data, &mut out).unwrap(), packet);
            assert_eq!(out[len..], [0xcc; 3]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_uses_no_counter() {
        let (mut a, mut b) = pair();
        for (room, len) in [(0, 0), (31, 0), (131, 100), (200, usize::MAX), (200, usize::MAX - 32)] {
            assert_eq!(a.seal(&mut vec![0; room], len), Err(Error::NoRoom));
        }
        assert_eq!(a.seal_from(&[0; 100], &mut [0; 131]), Err(Error::NoRoom));
        assert_eq!(a.seal_from(&[0; 100], &mut [0; 3]), Err(Error::NoRoom));
        assert_eq!(a.next, 0);
        let datagram = sealed(&mut a, &[0; 100]);
        let Some(Message::Data(data)) = Message::parse(&datagram) else { panic!() };
        assert_eq!(b.open_into(&data, &mut [0; 99]), Err(Error::NoRoom));
        assert!(b.open_into(&data, &mut [0; 100]).is_ok(), "it is not spent");
    }

    #[test]
    fn each_message_is_taken_once() {
        let (mut a, mut b) = pair();
        let datagrams: Vec<_> = (0..100_u8).map(|number| sealed(&mut a, &[number])).collect();
        for (number, datagram) in datagrams.iter().enumerate().rev() {
            assert_eq!(b.open(datagram).unwrap(), [number as u8]);
        }
        for datagram in &datagrams {
            assert_eq!(b.open(datagram), Err(Error::Replay));
            let Some(Message::Data(data)) = Message::parse(datagram) else { panic!() };
            assert_eq!(b.open_into(&data, &mut [0; 100]), Err(Error::Replay));
        }
    }

    #[test]
    fn a_forged_counter_does_not_move_the_window() {
        let (mut a, mut b) = pair();
        let datagram = sealed(&mut a, b"real");
        let mut forged = datagram.clone();
        forged[8..16].copy_from_slice(&(1_u64 << 50).to_le_bytes());
        assert_eq!(b.open(&forged), Err(Error::Data));
        assert_eq!(b.open(&datagram).unwrap(), b"real");
    }

    #[test]
    fn other_sessions_data_is_refused() {
        let (mut a, mut b) = pair();
        let datagram = sealed(&mut b, b"packet");
        assert_eq!(b.open(&datagram), Err(Error::Index), "reflected");
        let mut other = datagram.clone();
        other[4] ^= 1;
        assert_eq!(a.open(&other), Err(Error::Index));
        assert_eq!(a.open(&datagram[..31]), Err(Error::Data));
        assert_eq!(a.open(&[]), Err(Error::Data));
        assert!(a.open(&datagram).is_ok());
    }

    #[test]
    fn keys_wear_out() {
        let (mut a, mut b) = pair();
        a.next = REKEY_AFTER_MESSAGES - 1;
        assert!(!a.wants_new_keys());
        sealed(&mut a, &[]);
        assert!(a.wants_new_keys());
        a.next = REJECT_AFTER_MESSAGES - 1;
        let last = sealed(&mut a, b"last");
        assert_eq!(a.seal_from(b"one too many", &mut [0; 100]), Err(Error::WornOut));
        assert_eq!(a.next, REJECT_AFTER_MESSAGES, "it stays worn out");
        assert_eq!(b.open(&last).unwrap(), b"last");
        // Not even an authentic one is taken beyond.
        let mut beyond = vec![0; DATA_OVERHEAD];
        beyond[..DATA_HEADER].copy_from_slice(&Data::header(8, REJECT_AFTER_MESSAGES));
        let tag = a.sending.seal(REJECT_AFTER_MESSAGES, &mut []).unwrap();
        beyond[DATA_HEADER..].copy_from_slice(&tag);
        assert_eq!(b.open(&beyond), Err(Error::WornOut));
    }

    #[test]
    fn debug_tells_no_keys() {
        let (a, _) = pair();
        assert_eq!(format!("{a:?}"), "Transport { local_index: 7, peer_index: 8, next: 0, .. }");
    }
}
