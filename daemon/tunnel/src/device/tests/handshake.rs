//! Handshakes, keys and cookies.

use boringtun::noise::{Tunn, TunnResult};

use super::*;

#[test]
fn the_first_packet_makes_a_handshake_and_arrives() {
    let mut wire = Wire::new();
    assert!(wire.send(Side::A, &a_to_b(100)));
    assert!(wire.send(Side::B, &b_to_a(100)));
    assert_eq!((wire.count(INITIATION), wire.count(RESPONSE)), (1, 1));
    for (node, key) in [(&wire.a, wire.b.public()), (&wire.b, wire.a.public())] {
        let handshake = node.peer(key).last_handshake.expect("both ends know");
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(wall - handshake < Duration::from_secs(10));
    }
}

#[test]
fn packets_wait_for_the_handshake_in_order() {
    let mut wire = Wire::new();
    let packets: Vec<_> = (0..20).map(|size| a_to_b(100 + size)).collect();
    let mut sent = Vec::new();
    for packet in &packets {
        sent.extend(wire.encrypt(Side::A, packet));
    }
    assert_eq!(sent.len(), 1, "one initiation");
    wire.carry(sent);
    assert_eq!(wire.b.delivered, packets);
}

#[test]
fn both_may_start_at_once() {
    let mut wire = Wire::new();
    let a = wire.a.address;
    let key = wire.a.public();
    wire.b.apply_peer(peer_with(key, Some(a), &[]), wire.now);
    let mut sent = wire.encrypt(Side::A, &a_to_b(10));
    sent.extend(wire.encrypt(Side::B, &b_to_a(10)));
    wire.carry(sent);
    assert_eq!(wire.b.delivered, [a_to_b(10)]);
    assert_eq!(wire.a.delivered, [b_to_a(10)]);
    assert!(wire.both_ways());
}

#[test]
fn a_new_private_key_makes_a_new_handshake() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    for round in 2..5 {
        // What is in flight under the old keys still arrives.
        let in_flight = wire.encrypt(Side::B, &b_to_a(7));
        let old = wire.a.public();
        wire.a.private = StaticSecret::random_from_rng(rand_core::OsRng);
        wire.a.apply(&wire.a.private_key_update(), wire.now);
        wire.a.delivered.clear();
        wire.carry(in_flight);
        assert_eq!(wire.a.delivered, [b_to_a(7)]);

        let mut gone = PeerUpdate::new(old);
        gone.remove = true;
        wire.b.apply_peer(gone, wire.now);
        let key = wire.a.public();
        wire.b.apply_peer(peer_with(key, None, &["10.0.0.1/32"]), wire.now);
        assert!(wire.both_ways(), "round {round}");
        assert_eq!(wire.count(INITIATION), round);
    }
}

#[test]
fn the_same_private_key_again_changes_nothing() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    wire.a.apply(&wire.a.private_key_update(), wire.now);
    assert!(wire.both_ways());
    assert_eq!(wire.count(INITIATION), 1);
}

#[test]
fn without_a_private_key_nothing_leaves() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let none = DeviceUpdate { private_key: Some(Zeroizing::new([0; 32])), ..DeviceUpdate::default() };
    wire.a.apply(&none, wire.now);
    assert!(wire.a.device.state().private_key.is_none());
    assert!(wire.encrypt(Side::A, &a_to_b(10)).is_empty());
    assert_eq!(wire.a.dropped(Drop::NoPrivateKey), 1);
    wire.a.apply(&wire.a.private_key_update(), wire.now);
    wire.pass(Duration::from_secs(1));
    assert!(wire.both_ways());
}

#[test]
fn the_own_key_is_no_peer() {
    let mut wire = Wire::new();
    wire.a.apply_peer(peer_with(wire.a.public(), None, &["10.9.0.0/16"]), wire.now);
    assert_eq!(wire.a.device.state().peers.len(), 1, "ignored");
    wire.a.private = wire.b.private.clone();
    wire.a.apply(&wire.a.private_key_update(), wire.now);
    assert!(wire.a.device.state().peers.is_empty(), "removed when it becomes the own");
    assert!(wire.encrypt(Side::A, &a_to_b(10)).is_empty());
}

#[test]
fn weak_keys_are_refused_as_a_whole() {
    let wire = Wire::new();
    let mut one = [0; 32];
    one[0] = 1;
    for key in [[0; 32], one] {
        let update = DeviceUpdate {
            replace_peers: true,
            peers: vec![PeerUpdate::new([9; 32]), PeerUpdate::new(key)],
            ..DeviceUpdate::default()
        };
        assert_eq!(wire.a.device.apply(&update, wire.now), Err(ApplyError::WeakKey));
        assert_eq!(wire.a.device.state().peers.len(), 1, "nothing changed");
    }
}

fn set_psk(node: &Node, peer: [u8; 32], psk: [u8; 32], now: Instant) {
    let mut update = PeerUpdate::new(peer);
    update.preshared_key = Some(Zeroizing::new(psk));
    node.apply_peer(update, now);
}

#[test]
fn a_psk_changes_under_traffic_without_loss() {
    for (before, psk) in [([0; 32], [7; 32]), ([7; 32], [8; 32]), ([8; 32], [0; 32])] {
        let mut wire = Wire::new();
        let (a, b) = (wire.a.public(), wire.b.public());
        set_psk(&wire.a, b, before, wire.now);
        set_psk(&wire.b, a, before, wire.now);
        assert!(wire.both_ways());
        wire.pass(Duration::from_secs(1));
        let handshakes = wire.count(INITIATION);
        set_psk(&wire.a, b, psk, wire.now);
        // The other end does not know yet: handshakes fail, packets flow.
        for _ in 0..3 {
            assert!(wire.both_ways());
        }
        let in_flight = wire.encrypt(Side::A, &a_to_b(3));
        set_psk(&wire.b, a, psk, wire.now);
        assert!(wire.both_ways());
        wire.b.delivered.clear();
        wire.carry(in_flight);
        assert!(wire.b.delivered.contains(&a_to_b(3)));
        // Past the deadline of the old keys only the new ones can be at work. A failed handshake is repeated after 5
        // seconds; a fresh initiation of the other end does not wait.
        wire.pass(Duration::from_millis(30));
        assert!(wire.both_ways());
        wire.pass(Duration::from_secs(181));
        wire.tick(Side::A);
        wire.tick(Side::B);
        assert!(wire.both_ways(), "under the new PSK alone");
        assert!(wire.count(INITIATION) > handshakes);
        assert_eq!(wire.a.peer(b).preshared_key.is_some(), psk != [0; 32]);
    }
}

#[test]
fn different_psks_never_talk_for_longer_than_old_keys_live() {
    let mut wire = Wire::new();
    let b = wire.b.public();
    assert!(wire.both_ways());
    set_psk(&wire.a, b, [7; 32], wire.now);
    assert!(wire.both_ways());
    wire.pass(Duration::from_secs(181));
    assert!(!wire.send(Side::A, &a_to_b(10)));
    assert!(!wire.send(Side::B, &b_to_a(10)));
}

#[test]
fn under_load_a_cookie_opens_the_gate() {
    let mut wire = Wire::with_limit(0);
    let sent = wire.encrypt(Side::A, &a_to_b(10));
    let cookie = wire.receive(Side::B, sent[0].from, &sent[0].bytes);
    assert_eq!(cookie.len(), 1);
    assert_eq!((cookie[0].bytes[0], cookie[0].bytes.len()), (COOKIE, 64));
    assert_eq!(wire.b.dropped(Drop::CookieSent), 1);
    assert!(wire.receive(Side::A, cookie[0].from, &cookie[0].bytes).is_empty());
    // The next initiation carries the cookie. (A peer removed and added again starts at once.)
    wire.carry(cookie);
    let retry = next_initiation(&mut wire);
    assert_ne!(retry.bytes[132..148], [0; 16], "mac2 is there");
    let response = wire.receive(Side::B, retry.from, &retry.bytes);
    assert_eq!(response[0].bytes[0], RESPONSE);
    // The initiator is under load as well: it answers the response with a cookie.
    let cookie = wire.receive(Side::A, response[0].from, &response[0].bytes);
    assert_eq!(cookie[0].bytes[0], COOKIE);
    wire.carry(cookie);
    wire.pass(Duration::from_secs(1));
    let retry = next_initiation(&mut wire);
    wire.carry(vec![retry]);
    assert_eq!(wire.b.delivered, [a_to_b(10)]);
    assert!(wire.both_ways());
}

/// A repeats an initiation after 5 seconds and a third at most.
fn next_initiation(wire: &mut Wire) -> Seen {
    for _ in 0..54 {
        wire.pass(Duration::from_millis(100));
        if let Some(seen) = wire.tick(Side::A).into_iter().find(|seen| seen.bytes[0] == INITIATION) {
            return seen;
        }
    }
    panic!("no retransmission");
}

#[test]
fn the_last_handshake_below_the_limit_is_admitted_once() {
    // Were admissions counted twice, the second look would ask for a cookie.
    let mut wire = Wire::with_limit(1);
    assert!(wire.send(Side::A, &a_to_b(10)));
    assert_eq!((wire.count(INITIATION), wire.count(COOKIE)), (1, 0));
}

#[test]
fn a_flood_with_cookies_is_limited_per_source() {
    let mut wire = Wire::with_limit(0);
    let sent = wire.encrypt(Side::A, &a_to_b(10));
    wire.carry(sent);
    let with_cookie = next_initiation(&mut wire);
    let mut answered = 0;
    for _ in 0..50 {
        answered += wire.receive(Side::B, with_cookie.from, &with_cookie.bytes).len();
    }
    assert_eq!(answered, 1, "the rest are replays");
    assert_eq!(wire.b.dropped(Drop::RateLimited), 45);
    assert_eq!(wire.b.dropped(Drop::ReplayedHandshake), 4);
    // The same from elsewhere has the wrong cookie.
    let elsewhere = "198.51.100.1:1".parse().unwrap();
    let reply = wire.receive(Side::B, elsewhere, &with_cookie.bytes);
    assert_eq!((reply[0].bytes[0], reply[0].to), (COOKIE, elsewhere));
}

fn initiation(tunn: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; 200];
    match tunn.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("no initiation: {other:?}"),
    }
}

/// Recorded before the responder started, so that it cannot know that they are old.
#[test]
fn replayed_initiations_replace_no_live_session() {
    let mut wire = Wire::new();
    let mut tunn = Tunn::new(wire.a.private.clone(), wire.b.public().into(), None, None, 77, None);
    let recorded: Vec<Vec<u8>> = (0..20).map(|_| initiation(&mut tunn)).collect();
    wire.b.apply_peer(peer_with(wire.a.public(), Some(wire.a.address), &[]), wire.now);
    assert!(wire.send(Side::B, &b_to_a(10)));
    for initiation in recorded {
        wire.pass(Duration::from_millis(25));
        wire.receive(Side::B, "203.0.113.9:6".parse().unwrap(), &initiation);
        assert!(wire.both_ways());
    }
}

/// While one end has a PSK that the other does not know, its initiations are answered in vain.
#[test]
fn answers_that_cannot_be_used_replace_no_live_session() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let key = Some(Zeroizing::new([7; 32]));
    wire.a
        .apply_peer(PeerUpdate { preshared_key: key.clone(), ..PeerUpdate::new(wire.b.public()) }, wire.now);
    let mut stranger =
        Tunn::new(wire.a.private.clone(), wire.b.public().into(), Some([7; 32]), None, 77, None);
    for _ in 0..20 {
        let initiation = initiation(&mut stranger);
        wire.pass(Duration::from_secs(5));
        wire.tick(Side::A);
        assert_eq!(wire.receive(Side::B, wire.a.address, &initiation).len(), 1, "B answers");
        assert!(wire.both_ways());
    }
    wire.b.apply_peer(PeerUpdate { preshared_key: key, ..PeerUpdate::new(wire.a.public()) }, wire.now);
    let initiation = next_initiation(&mut wire);
    wire.carry(vec![initiation]);
    assert!(wire.both_ways());
}

/// Each end has what it needs to receive from the other, whatever crosses, and however soon keys change again.
#[test]
fn crossing_initiations_lose_nothing_when_the_psk_changes_again() {
    for _ in 0..8 {
        let mut wire = Wire::new();
        assert!(wire.both_ways());
        for psk in [[1; 32], [2; 32], [0; 32]] {
            let psk = Some(Zeroizing::new(psk));
            let of = |peer| PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(peer) };
            let (a, b) = (wire.a.public(), wire.b.public());
            wire.a.apply_peer(of(b), wire.now);
            wire.b.apply_peer(of(a), wire.now);
            // Before any handshake with the new PSK the old keys carry, both ways.
            let from_a = wire.encrypt(Side::A, &a_to_b(10));
            let from_b = wire.encrypt(Side::B, &b_to_a(10));
            assert_eq!((from_a.len(), from_b.len()), (2, 2), "a packet and an initiation each");
            let answers_b: Vec<_> =
                from_a.iter().flat_map(|s| wire.receive(Side::B, s.from, &s.bytes)).collect();
            let answers_a: Vec<_> =
                from_b.iter().flat_map(|s| wire.receive(Side::A, s.from, &s.bytes)).collect();
            wire.carry(answers_a.into_iter().chain(answers_b).collect());
            for _ in 0..3 {
                assert!(wire.both_ways());
            }
            wire.pass(Duration::from_millis(25));
        }
    }
}

#[test]
fn crossing_initiations_after_a_new_psk_lose_nothing() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let psk = Some(Zeroizing::new([7; 32]));
    wire.a
        .apply_peer(PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(wire.b.public()) }, wire.now);
    wire.b.apply_peer(PeerUpdate { preshared_key: psk, ..PeerUpdate::new(wire.a.public()) }, wire.now);
    wire.pass(Duration::from_secs(1));
    let from_a = wire.encrypt(Side::A, &a_to_b(10));
    let from_b = wire.encrypt(Side::B, &b_to_a(10));
    assert_eq!((from_a.len(), from_b.len()), (2, 2), "old keys carry, and a handshake starts");
    wire.carry(from_a.into_iter().chain(from_b).collect());
    for _ in 0..3 {
        assert!(wire.both_ways());
    }
}

#[test]
fn a_new_psk_loses_nothing_on_the_way_from_one_end_to_the_other() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    for psk in [[1; 32], [2; 32], [0; 32]] {
        let psk = Some(Zeroizing::new(psk));
        wire.a.apply_peer(
            PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(wire.b.public()) },
            wire.now,
        );
        for _ in 0..3 {
            wire.pass(Duration::from_millis(30));
            assert!(wire.both_ways(), "while one end has it");
        }
        wire.b.apply_peer(PeerUpdate { preshared_key: psk, ..PeerUpdate::new(wire.a.public()) }, wire.now);
        for n in 0..5 {
            wire.pass(Duration::from_millis(30));
            assert!(wire.both_ways(), "when both have it, packet {n}");
        }
    }
}

#[test]
fn a_new_psk_on_both_ends_at_once_loses_nothing() {
    for answer_first in [false, true] {
        let mut wire = Wire::new();
        assert!(wire.both_ways());
        for psk in [[1; 32], [2; 32], [0; 32]] {
            let psk = Some(Zeroizing::new(psk));
            wire.a.apply_peer(
                PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(wire.b.public()) },
                wire.now,
            );
            if answer_first {
                let sent = wire.encrypt(Side::A, &a_to_b(10));
                let answers: Vec<_> =
                    sent.iter().flat_map(|s| wire.receive(Side::B, s.from, &s.bytes)).collect();
                wire.b.apply_peer(
                    PeerUpdate { preshared_key: psk, ..PeerUpdate::new(wire.a.public()) },
                    wire.now,
                );
                wire.carry(answers);
            } else {
                wire.b.apply_peer(
                    PeerUpdate { preshared_key: psk, ..PeerUpdate::new(wire.a.public()) },
                    wire.now,
                );
            }
            for n in 0..5 {
                assert!(wire.send(Side::A, &a_to_b(10)), "a to b, packet {n}");
                assert!(wire.send(Side::B, &b_to_a(10)), "b to a, packet {n}");
                wire.pass(Duration::from_millis(10));
            }
        }
    }
}
