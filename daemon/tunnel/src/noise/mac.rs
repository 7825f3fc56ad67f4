//! The MACs at the end of a handshake message, and cookies (whitepaper sections 5.4.4 and 5.4.7).
//!
//! ```text
//!            mac1: whoever sends knows whom to. Always.          mac2: whoever sends is where it says. Under load.
//!  sender  ──────────────────── message, mac1, mac2 = 0 ───────────────────▶ Checker::is_mac1_right
//!  Stamper ◀─────────────────── cookie reply ─────────────────────────────── Checker::reply
//!    take  ──────────────────── message, mac1, mac2 by the cookie ─────────▶ Checker::is_mac2_right
//! ```
//!
//! Whether there is load, and how many messages a source may then send, is the caller's to decide.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::AeadInPlace;
use rand_core::{OsRng, RngCore};
use x25519_dalek::PublicKey;
use zeroize::Zeroizing;

use super::Error;
use super::message::{COOKIE_NONCE, COOKIE_REPLY, CookieReply, Handshake, MAC, TAG};

/// How long a cookie is right, and how long one is used.
const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// How much earlier one is no longer used, because it was on its way (kernel `messages.h`, COOKIE_SECRET_LATENCY).
const COOKIE_LATENCY: Duration = Duration::from_secs(5);

type Tag16 = [u8; MAC];

/// What MACs and cookies of messages to the owner of a public key are made with. Anybody can know it.
struct Recipient {
    mac1: [u8; 32],
    cookie: XChaCha20Poly1305,
}

impl Recipient {
    fn new(public: &PublicKey) -> Self {
        let hash = |label: &[u8]| Blake2s256::new().chain_update(label).chain_update(public).finalize();
        Self { mac1: hash(b"mac1----").into(), cookie: XChaCha20Poly1305::new(&hash(b"cookie--")) }
    }

    fn mac1(&self, covered: &[u8]) -> Blake2sMac<U16> {
        mac(&self.mac1, covered)
    }
}

/// A MAC over the beginning of a message, to be compared or written.
fn mac(key: &[u8], covered: &[u8]) -> Blake2sMac<U16> {
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("keys have 32 bytes at most");
    mac.chain_update(covered)
}

/// Judges messages that come.
pub struct Checker {
    own: Recipient,
    /// Only looked at under load.
    secret: Mutex<Secret>,
}

/// What cookies are made with, and since when.
struct Secret {
    key: Zeroizing<[u8; 32]>,
    since: Instant,
}

impl Secret {
    fn new(now: Instant) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(&mut *key);
        Self { key, since: now }
    }
}

impl Checker {
    /// For messages to the owner of `public`.
    pub fn new(public: &PublicKey, now: Instant) -> Self {
        Self { own: Recipient::new(public), secret: Mutex::new(Secret::new(now)) }
    }

    /// Whether the sender knew our public key. Costs a microsecond.
    pub fn is_mac1_right(&self, message: &impl Handshake) -> bool {
        let Macs { before_mac1, mac1, .. } = Macs::of(message);
        self.own.mac1(before_mac1).verify_slice(mac1).is_ok()
    }

    /// Whether the sender has got a cookie of ours at this address and port.
    pub fn is_mac2_right(&self, message: &impl Handshake, source: SocketAddr, now: Instant) -> bool {
        let Macs { before_mac2, mac2, .. } = Macs::of(message);
        mac(&*self.cookie(source, now), before_mac2).verify_slice(mac2).is_ok()
    }

    /// A cookie for the sender of a message of which mac1 is right.
    pub fn reply(&self, message: &impl Handshake, source: SocketAddr, now: Instant) -> [u8; COOKIE_REPLY] {
        let mut nonce = [0; COOKIE_NONCE];
        OsRng.fill_bytes(&mut nonce);
        let mut cookie = self.cookie(source, now);
        let mac1 = Macs::of(message).mac1;
        let tag = self.own.cookie.encrypt_in_place_detached(&nonce.into(), mac1, &mut *cookie);
        let tag = tag.expect("16 bytes are not too many");
        CookieReply::write(message.sender(), &nonce, &cookie, &tag.into())
    }

    fn cookie(&self, source: SocketAddr, now: Instant) -> Zeroizing<Tag16> {
        let mut secret = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(secret.since) >= COOKIE_LIFE {
            *secret = Secret::new(now);
        }
        let mac = match source.ip() {
            IpAddr::V4(ip) => mac(&*secret.key, &ip.octets()),
            IpAddr::V6(ip) => mac(&*secret.key, &ip.octets()),
        };
        Zeroizing::new(mac.chain_update(source.port().to_be_bytes()).finalize().into_bytes().into())
    }
}

/// Adds the MACs to messages that go to one peer, and keeps its cookies.
pub struct Stamper {
    peer: Recipient,
    cookie: Option<(Zeroizing<Tag16>, Instant)>,
    /// That of the last message, while a cookie may still answer it.
    mac1: Option<Tag16>,
}

impl Stamper {
    /// For messages to the owner of `public`.
    pub fn new(public: &PublicKey) -> Self {
        Self { peer: Recipient::new(public), cookie: None, mac1: None }
    }

    /// Writes mac1, and with a fresh cookie mac2, into an initiation or a response.
    pub fn stamp<const N: usize>(&mut self, message: &mut [u8; N], now: Instant) {
        const { assert!(N > 2 * MAC, "a handshake message ends in two MACs") };
        let (before_mac2, mac2) = message.split_at_mut(N - MAC);
        let (before_mac1, mac1) = before_mac2.split_at_mut(N - 2 * MAC);
        let stamp: Tag16 = self.peer.mac1(before_mac1).finalize().into_bytes().into();
        mac1.copy_from_slice(&stamp);
        self.mac1 = Some(stamp);
        let old = |(_, since): &mut (_, Instant)| {
            now.saturating_duration_since(*since) >= COOKIE_LIFE - COOKIE_LATENCY
        };
        self.cookie.take_if(old);
        match &self.cookie {
            Some((cookie, _)) => mac2.copy_from_slice(&mac(&**cookie, before_mac2).finalize().into_bytes()),
            None => mac2.fill(0),
        }
    }

    /// Takes the cookie out of the reply to the last message. One is taken for each.
    ///
    /// # Errors
    /// [`Error::Cookie`]: it is not the peer's, or for another message.
    pub fn take(&mut self, reply: &CookieReply<'_>, now: Instant) -> Result<(), Error> {
        let mac1 = self.mac1.ok_or(Error::Cookie)?;
        let (cookie, tag) = reply.sealed().split_first_chunk::<MAC>().ok_or(Error::Cookie)?;
        let tag: &[u8; TAG] = tag.try_into().map_err(|_| Error::Cookie)?;
        let mut cookie = Zeroizing::new(*cookie);
        self.peer
            .cookie
            .decrypt_in_place_detached(reply.nonce().into(), &mac1, &mut *cookie, tag.into())
            .map_err(|_| Error::Cookie)?;
        self.mac1 = None;
        self.cookie = Some((cookie, now));
        Ok(())
    }
}

/// The end of a handshake message, and what it covers.
struct Macs<'a> {
    before_mac1: &'a [u8],
    mac1: &'a [u8],
    before_mac2: &'a [u8],
    mac2: &'a [u8],
}

impl<'a> Macs<'a> {
    fn of(message: &'a impl Handshake) -> Self {
        let bytes = message.bytes();
        let (before_mac2, mac2) = bytes.split_at(bytes.len() - MAC);
        let (before_mac1, mac1) = before_mac2.split_at(before_mac2.len() - MAC);
        Self { before_mac1, mac1, before_mac2, mac2 }
    }
}

#[cfg(test)]
mod tests {
    use x25519_dalek::StaticSecret;

    use super::*;
    use crate::noise::message::{INITIATION, Initiation, Message, RESPONSE, Response};

    const SOURCE: &str = "192.0.2.1:51820";

    fn public() -> PublicKey {
        (&StaticSecret::random_from_rng(OsRng)).into()
    }

    fn initiation(sender: u32) -> [u8; INITIATION] {
        Initiation::write(sender, |noise| {
            OsRng.fill_bytes(noise);
            Ok::<_, ()>(())
        })
        .unwrap()
    }

    fn parsed(bytes: &[u8; INITIATION]) -> Initiation<'_> {
        let Some(Message::Initiation(initiation)) = Message::parse(bytes) else { panic!() };
        initiation
    }

    fn cookie(bytes: &[u8; COOKIE_REPLY]) -> CookieReply<'_> {
        let Some(Message::CookieReply(reply)) = Message::parse(bytes) else { panic!() };
        reply
    }

    #[test]
    fn mac1_covers_what_precedes_it() {
        let (public, now) = (public(), Instant::now());
        let (checker, mut stamper) = (Checker::new(&public, now), Stamper::new(&public));
        let mut bytes = initiation(1);
        assert!(!checker.is_mac1_right(&parsed(&bytes)));
        stamper.stamp(&mut bytes, now);
        assert!(checker.is_mac1_right(&parsed(&bytes)));
        assert_eq!(bytes[INITIATION - MAC..], [0; MAC], "without a cookie");
        for place in 4..INITIATION - MAC {
            let mut other = bytes;
            other[place] ^= 0x80;
            assert!(!checker.is_mac1_right(&parsed(&other)), "byte {place}");
        }
        let mut response = Response::write(1, 2, |_| Ok::<_, ()>(())).unwrap();
        stamper.stamp(&mut response, now);
        let Some(Message::Response(response)) = Message::parse(&response) else { panic!() };
        assert_eq!(response.bytes().len(), RESPONSE);
        assert!(checker.is_mac1_right(&response));
        assert!(!Checker::new(&self::public(), now).is_mac1_right(&response), "for another recipient");
    }

    #[test]
    fn a_cookie_proves_address_and_port_for_two_minutes() {
        let (public, start) = (public(), Instant::now());
        let (checker, mut stamper) = (Checker::new(&public, start), Stamper::new(&public));
        let source = SOURCE.parse().unwrap();
        let mut bytes = initiation(7);
        stamper.stamp(&mut bytes, start);
        assert!(!checker.is_mac2_right(&parsed(&bytes), source, start));
        let reply = checker.reply(&parsed(&bytes), source, start);
        assert_eq!(cookie(&reply).receiver(), 7);
        assert_eq!(stamper.take(&cookie(&reply), start), Ok(()));

        let mut bytes = initiation(8);
        stamper.stamp(&mut bytes, start);
        let message = parsed(&bytes);
        assert!(checker.is_mac1_right(&message));
        assert!(checker.is_mac2_right(&message, source, start));
        for other in ["192.0.2.1:51821", "192.0.2.2:51820", "[2001:db8::1]:51820"] {
            assert!(!checker.is_mac2_right(&message, other.parse().unwrap(), start), "{other}");
        }
        assert!(!Checker::new(&public, start).is_mac2_right(&message, source, start), "another's secret");
        for place in 4..INITIATION {
            let mut other = bytes;
            other[place] ^= 1;
            assert!(!checker.is_mac2_right(&parsed(&other), source, start), "byte {place}");
        }
        let late = start + COOKIE_LIFE - Duration::from_millis(1);
        assert!(checker.is_mac2_right(&message, source, late));
        assert!(!checker.is_mac2_right(&message, source, start + COOKIE_LIFE));
        assert!(!checker.is_mac2_right(&message, source, late), "the secret is another one now");
    }

    #[test]
    fn a_cookie_is_used_while_it_may_be_right() {
        let (public, start) = (public(), Instant::now());
        let (checker, mut stamper) = (Checker::new(&public, start), Stamper::new(&public));
        let mut bytes = initiation(1);
        stamper.stamp(&mut bytes, start);
        let reply = checker.reply(&parsed(&bytes), SOURCE.parse().unwrap(), start);
        stamper.take(&cookie(&reply), start).unwrap();
        let old = start + Duration::from_secs(115);
        stamper.stamp(&mut bytes, old - Duration::from_millis(1));
        assert_ne!(bytes[INITIATION - MAC..], [0; MAC]);
        stamper.stamp(&mut bytes, old);
        assert_eq!(bytes[INITIATION - MAC..], [0; MAC]);
    }

    #[test]
    fn only_the_peers_answer_to_the_last_message_is_taken() {
        let (public, now) = (public(), Instant::now());
        let (checker, mut stamper) = (Checker::new(&public, now), Stamper::new(&public));
        let source = SOURCE.parse().unwrap();
        let (mut first, mut last) = (initiation(1), initiation(2));
        stamper.stamp(&mut first, now);
        stamper.stamp(&mut last, now);
        let for_first = checker.reply(&parsed(&first), source, now);
        assert_eq!(stamper.take(&cookie(&for_first), now), Err(Error::Cookie));
        let strangers = Checker::new(&self::public(), now).reply(&parsed(&last), source, now);
        assert_eq!(stamper.take(&cookie(&strangers), now), Err(Error::Cookie));
        let reply = checker.reply(&parsed(&last), source, now);
        for place in 8..COOKIE_REPLY {
            let mut forged = reply;
            forged[place] ^= 1;
            assert_eq!(stamper.take(&cookie(&forged), now), Err(Error::Cookie), "byte {place}");
        }
        assert_eq!(stamper.take(&cookie(&reply), now), Ok(()));
        assert_eq!(stamper.take(&cookie(&reply), now), Err(Error::Cookie), "a replay");
        assert_ne!(checker.reply(&parsed(&last), source, now), reply, "each has a nonce of its own");
    }
}
