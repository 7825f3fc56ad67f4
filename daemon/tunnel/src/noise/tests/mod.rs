//! Handshakes and sessions as a whole: with each other, with boringtun, and with somebody in between.

mod forged;
mod handshake;
mod interoperation;

use std::time::Instant;

use rand_core::OsRng;
use x25519_dalek::{PublicKey, StaticSecret};

use super::handshake::{Initiator, Keys, LocalKey, PeerKey, PresharedKey, Responder};
use super::mac::{Checker, Stamper};
use super::message::{CookieReply, Data, INITIATION, Initiation, Message, RESPONSE, Response};
use super::timestamp::Timestamp;

/// One end, with what it knows of the other.
struct End {
    local: LocalKey,
    peer: PeerKey,
    psk: PresharedKey,
    checker: Checker,
    stamper: Stamper,
}

impl End {
    fn new(secret: &StaticSecret, peer: PublicKey, psk: PresharedKey) -> Self {
        let local = LocalKey::new(secret.clone());
        Self {
            peer: PeerKey::new(&local, peer).unwrap(),
            psk,
            checker: Checker::new(local.public(), Instant::now()),
            stamper: Stamper::new(&peer),
            local,
        }
    }

    fn initiate(&mut self, index: u32, time: Timestamp) -> (Initiator, [u8; INITIATION]) {
        let (initiator, mut bytes) = Initiator::new(&self.local, &self.peer, &self.psk, index, time).unwrap();
        self.stamper.stamp(&mut bytes, Instant::now());
        (initiator, bytes)
    }

    fn answer(&mut self, initiation: &[u8], index: u32) -> ([u8; RESPONSE], Keys) {
        let initiation = as_initiation(initiation);
        assert!(self.checker.is_mac1_right(&initiation));
        let responder = Responder::read(&self.local, &initiation).unwrap();
        assert_eq!(responder.peer(), self.peer.public());
        let (mut response, keys) = responder.answer(&self.psk, index).unwrap();
        self.stamper.stamp(&mut response, Instant::now());
        (response, keys)
    }
}

fn secret() -> StaticSecret {
    StaticSecret::random_from_rng(OsRng)
}

/// Two ends that know each other.
fn ends(psk: PresharedKey) -> (End, End) {
    let (a, b) = (secret(), secret());
    (End::new(&a, (&b).into(), psk), End::new(&b, (&a).into(), psk))
}

/// A time; later for greater numbers.
fn time(number: u8) -> Timestamp {
    Timestamp([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number])
}

fn as_initiation(bytes: &[u8]) -> Initiation<'_> {
    let Some(Message::Initiation(initiation)) = Message::parse(bytes) else { panic!("no initiation") };
    initiation
}

fn as_response(bytes: &[u8]) -> Response<'_> {
    let Some(Message::Response(response)) = Message::parse(bytes) else { panic!("no response") };
    response
}

fn as_cookie(bytes: &[u8]) -> CookieReply<'_> {
    let Some(Message::CookieReply(cookie)) = Message::parse(bytes) else { panic!("no cookie reply") };
    cookie
}

fn as_data(bytes: &[u8]) -> Data<'_> {
    let Some(Message::Data(data)) = Message::parse(bytes) else { panic!("no data") };
    data
}
