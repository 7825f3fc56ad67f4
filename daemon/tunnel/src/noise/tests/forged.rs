//! Somebody in between changes bytes, cuts them off, or makes them up.

use proptest::prelude::*;

use super::*;
use crate::noise::Error;
use crate::noise::transport::Transport;

/// All of a message's bytes, each changed alone.
fn changed(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len()).map(|place| {
        let mut changed = bytes.to_vec();
        changed[place] ^= 0x10;
        (place, changed)
    })
}

#[test]
fn every_byte_of_an_initiation_counts() {
    let (mut a, b) = ends([3; 32]);
    let (_, initiation) = a.initiate(1, time(1));
    for (place, bytes) in changed(&initiation) {
        let Some(Message::Initiation(message)) = Message::parse(&bytes) else {
            assert!(place < 4, "byte {place}");
            continue;
        };
        // mac2 is looked at under load only.
        assert_eq!(b.checker.is_mac1_right(&message), place >= 132, "byte {place}");
        // What the handshake itself proves: all but the sender's index, and the MACs.
        let authentic = Responder::read(&b.local, &message).is_ok();
        assert_eq!(authentic, (4..8).contains(&place) || place >= 116, "byte {place}");
    }
}

#[test]
fn every_byte_of_a_response_counts_and_a_forged_one_spoils_nothing() {
    let (mut a, mut b) = ends([3; 32]);
    let (mut initiator, initiation) = a.initiate(1, time(1));
    let (response, of_b) = b.answer(&initiation, 2);
    for (place, bytes) in changed(&response) {
        let Some(Message::Response(message)) = Message::parse(&bytes) else {
            assert!(place < 4, "byte {place}");
            continue;
        };
        assert_eq!(a.checker.is_mac1_right(&message), place >= 76, "byte {place}");
        match place {
            // Proved by mac1 and by data: a wrong index leads nowhere.
            4..8 | 60.. => {}
            8..12 => assert_eq!(initiator.finish(&message).unwrap_err(), Error::Index),
            _ => assert_eq!(initiator.finish(&message).unwrap_err(), Error::Handshake, "byte {place}"),
        }
    }
    let of_a = initiator.finish(&as_response(&response)).unwrap();
    let mut buffer = [0; 64];
    let len = Transport::new(&of_a).seal_from(b"packet", &mut buffer).unwrap();
    assert_eq!(Transport::new(&of_b).open(&buffer[..len]).unwrap(), b"packet");
}

#[test]
fn every_byte_of_data_counts() {
    let (mut a, mut b) = sessions();
    let mut datagram = [0; 100 + 32];
    a.seal_from(&[7; 100], &mut datagram).unwrap();
    for (place, bytes) in changed(&datagram) {
        if Message::parse(&bytes).is_none() {
            assert!(place < 4, "byte {place}");
            continue;
        }
        let expected = if (4..8).contains(&place) { Error::Index } else { Error::Data };
        let reason = b.open_into(&as_data(&bytes), &mut [0; 100]).unwrap_err();
        assert!(reason == expected || (place == 15 && reason == Error::WornOut), "byte {place}");
        let reason = b.open(&bytes).unwrap_err();
        assert!(reason == expected || (place == 15 && reason == Error::WornOut), "byte {place}");
    }
    for len in 0..datagram.len() {
        assert_eq!(b.open(&datagram[..len]).unwrap_err(), Error::Data, "{len} bytes");
    }
    assert_eq!(b.open(&datagram).unwrap(), [7; 100]);
}

fn sessions() -> (Transport, Transport) {
    let (mut a, mut b) = ends([3; 32]);
    let (mut initiator, initiation) = a.initiate(1, time(1));
    let (response, of_b) = b.answer(&initiation, 2);
    (Transport::new(&initiator.finish(&as_response(&response)).unwrap()), Transport::new(&of_b))
}

/// One of each message, for one end that knows the other and waits for it.
struct Scene {
    end: End,
    initiator: Initiator,
    session: Transport,
    messages: [Vec<u8>; 4],
}

impl Scene {
    fn new() -> Self {
        let (mut a, mut b) = ends([3; 32]);
        let (_, of_b) = b.initiate(1, time(1));
        let (initiator, initiation) = a.initiate(2, time(1));
        let (response, _) = b.answer(&initiation, 3);
        let source = ([192, 0, 2, 1], 51820).into();
        let cookie = b.checker.reply(&as_initiation(&initiation), source, Instant::now());
        let (session, mut other) = sessions();
        let mut data = vec![0; 80];
        other.seal_from(&[7; 48], &mut data).unwrap();
        Self { end: a, initiator, session, messages: [of_b.into(), response.into(), cookie.into(), data] }
    }

    /// Whether a message is taken, by the parts that would have to.
    fn takes(&mut self, bytes: &[u8]) -> bool {
        let source = ([192, 0, 2, 1], 51820).into();
        let now = Instant::now();
        match Message::parse(bytes) {
            None => false,
            Some(Message::Initiation(message)) => {
                let right = self.end.checker.is_mac1_right(&message);
                let _ = self.end.checker.is_mac2_right(&message, source, now);
                Responder::read(&self.end.local, &message).is_ok() && right
            }
            Some(Message::Response(message)) => {
                let right = self.end.checker.is_mac1_right(&message);
                self.initiator.finish(&message).is_ok() && right
            }
            Some(Message::CookieReply(message)) => self.end.stamper.take(&message, now).is_ok(),
            Some(Message::Data(message)) => self.session.open_into(&message, &mut [0; 100]).is_ok(),
        }
    }
}

#[test]
fn the_scene_is_real() {
    let mut scene = Scene::new();
    for message in scene.messages.clone() {
        assert!(scene.takes(&message));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_mangled_is_taken(
        which in 0..4_usize,
        at in any::<prop::sample::Index>(),
        with in prop::collection::vec(any::<u8>(), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut scene = Scene::new();
        let real = scene.messages[which].clone();
        let mut bytes = real.clone();
        let start = at.index(bytes.len());
        let end = (start + with.len()).min(bytes.len());
        bytes[start..end].copy_from_slice(&with[..end - start]);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        // Without load nobody looks at mac2; a cookie reply's index is for its caller to see.
        let same = |bytes: &[u8]| match which {
            0 | 1 => bytes.len() == real.len() && bytes[..real.len() - 16] == real[..real.len() - 16],
            2 => bytes.len() == real.len() && bytes[..4] == real[..4] && bytes[8..] == real[8..],
            _ => bytes == real,
        };
        prop_assert_eq!(scene.takes(&bytes), same(&bytes));
    }

    #[test]
    fn nothing_made_up_is_taken(kind in 0..6_u8, mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(head) = bytes.first_chunk_mut() {
            *head = [kind, 0, 0, 0];
        }
        let lengths = [0, 148, 92, 64, 40, 0];
        let mut scene = Scene::new();
        prop_assert!(!scene.takes(&bytes));
        bytes.resize(lengths[usize::from(kind)], 0);
        prop_assert!(!scene.takes(&bytes));
    }
}
