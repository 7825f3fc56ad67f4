//! Many peers: those that come and go, those that are away, those that all want keys at once.

use std::collections::BTreeSet;

use super::super::session::WAITING_BYTES;
use super::*;

/// The endpoint of peer `number`, where nobody is.
fn away(number: u16) -> SocketAddr {
    SocketAddr::new("192.0.2.99".parse().unwrap(), 10_000 + number)
}

/// Peer `number`, which nobody answers for, with 10.1.x.y as its network.
fn absent(number: u16) -> PeerUpdate {
    let mut key = [7; 32];
    key[..2].copy_from_slice(&number.to_le_bytes());
    let [high, low] = number.to_be_bytes();
    peer_with(key, Some(away(number)), &[&format!("10.1.{high}.{low}/32")])
}

fn to_absent(number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    packet("10.0.0.1", &format!("10.1.{high}.{low}"), 1380)
}

impl Wire {
    /// A knows so many peers that are away, and wants them to have keepalives.
    fn with_absent(peers: u16, keepalive: Option<u16>) -> Self {
        let wire = Self::new();
        let peers = (0..peers).map(|number| PeerUpdate { persistent_keepalive: keepalive, ..absent(number) });
        wire.a.apply(&DeviceUpdate { peers: peers.collect(), ..DeviceUpdate::default() }, wire.now);
        wire
    }

    /// One tick of A's: to whom it sent initiations, and whether that was the end of a round.
    fn slice(&mut self) -> (Vec<SocketAddr>, bool) {
        let mut out = Datagrams::new(512);
        let over = self.a.device.tick(0, self.clock(), &mut out, |_| panic!("the batch is large enough"));
        let sent = self.take(Side::A, &out).into_iter().filter(|seen| seen.bytes[0] == INITIATION);
        (sent.map(|seen| seen.to).collect(), over)
    }
}

#[test]
fn handshakes_that_are_all_due_come_a_few_at_a_time() {
    const PEERS: u16 = 1000;
    let mut wire = Wire::with_absent(PEERS, Some(25));
    let (mut reached, mut ticks) = (BTreeSet::new(), 0);
    loop {
        let (to, over) = wire.slice();
        ticks += 1;
        assert!(to.len() <= HANDSHAKES_PER_TICK, "{} in one tick", to.len());
        for peer in to {
            assert!(reached.insert(peer), "{peer} twice in one round");
        }
        if over {
            break;
        }
        wire.pass(PAUSE);
    }
    assert_eq!(reached, (0..PEERS).map(away).collect());
    assert_eq!(ticks, usize::from(PEERS) / HANDSHAKES_PER_TICK + 1);
    assert_eq!(wire.slice(), (vec![], true), "nobody is due again");
}

#[test]
fn peers_that_come_during_a_round_have_their_turn() {
    let mut wire = Wire::with_absent(50, Some(25));
    let mut reached = BTreeSet::new();
    let mut number = 50;
    for _ in 0..200 {
        let (to, over) = wire.slice();
        reached.extend(to);
        if number < 100 {
            wire.a.apply_peer(PeerUpdate { persistent_keepalive: Some(25), ..absent(number) }, wire.now);
            number += 1;
        } else if over && reached.len() == 100 {
            break;
        }
        wire.pass(PAUSE);
    }
    assert_eq!(reached, (0..100).map(away).collect());
}

#[test]
fn peers_that_are_away_hold_a_bounded_number_of_bytes() {
    const PEERS: u16 = 200;
    let mut wire = Wire::with_absent(PEERS, None);
    for number in 0..PEERS {
        for _ in 0..256 {
            wire.encrypt(Side::A, &to_absent(number));
        }
    }
    let (_, waiting) = wire.a.device.held();
    assert!((WAITING_BYTES - 2000..=WAITING_BYTES).contains(&waiting), "{waiting} bytes wait");
    assert!(wire.a.dropped(Drop::QueuesFull) > 40_000, "{}", wire.a.dropped(Drop::QueuesFull));
    assert_eq!(wire.a.dropped(Drop::NoKeys), 0, "no queue was full by itself");
    // The first packet to somebody who is there arrives all the same, and so does what follows.
    assert!(wire.send(Side::A, &a_to_b(1000)));
    assert!(wire.both_ways());
    // What leaves gives back.
    let peers = (0..PEERS).map(|number| PeerUpdate { remove: true, ..absent(number) });
    wire.a.apply(&DeviceUpdate { peers: peers.collect(), ..DeviceUpdate::default() }, wire.now);
    assert_eq!(wire.a.device.held().1, 0);
}

#[test]
fn without_a_private_key_nothing_waits() {
    let mut wire = Wire::new();
    for size in 0..10 {
        wire.encrypt(Side::A, &a_to_b(500 + size));
    }
    assert!(wire.a.device.held().1 > 5000);
    let none = DeviceUpdate { private_key: Some(Zeroizing::new([0; 32])), ..DeviceUpdate::default() };
    wire.a.apply(&none, wire.now);
    assert!(wire.tick(Side::A).is_empty());
    assert_eq!((wire.a.device.held().1, wire.a.dropped(Drop::NoPrivateKey)), (0, 10));
    wire.a.apply(&wire.a.private_key_update(), wire.now);
    wire.pass(Duration::from_secs(1));
    let sent = wire.encrypt(Side::A, &a_to_b(10));
    wire.carry(sent);
    assert_eq!(wire.b.delivered, [a_to_b(10)], "nothing stale");
}

/// ARCHITECTURE.md tells what a peer takes for each lane: with its lock and its place in the tables, less than 1 KiB.
#[test]
fn a_session_without_keys_is_small() {
    let (session, keys) = super::super::session::SIZES;
    println!("a session {session} bytes, each of its keys {keys}");
    assert!(session < 700 && keys < 2500);
}

#[test]
fn peers_come_and_go_and_nothing_is_left_of_them() {
    const CYCLES: usize = 2000;
    // All in less than a second, which is too many handshakes for one.
    let mut wire = Wire::with_limit(u64::MAX);
    let (a, b) = (wire.a.public(), wire.b.public());
    for cycle in 0..CYCLES {
        assert!(wire.both_ways(), "cycle {cycle}");
        wire.seen.clear();
        let psk = Some(Zeroizing::new([(cycle % 250) as u8 + 1; 32]));
        wire.a.apply_peer(PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(b) }, wire.now);
        wire.b.apply_peer(PeerUpdate { preshared_key: psk, ..PeerUpdate::new(a) }, wire.now);
        wire.pass(Duration::from_millis(30));
        assert!(wire.both_ways(), "cycle {cycle}, another PSK");
        for node in [&wire.a, &wire.b] {
            let (indices, waiting) = node.device.held();
            assert!(
                indices == usize::from(LANES) && waiting == 0,
                "cycle {cycle}: {indices} indices, {waiting} bytes wait"
            );
        }
        // A packet waits when its peer goes.
        let now = wire.now;
        wire.a.apply_peer(absent(0), now);
        wire.encrypt(Side::A, &to_absent(0));
        let again = peer_with(b, Some(wire.b.address), &["10.0.0.2/32", "fd00::2/128"]);
        if cycle % 2 == 0 {
            let peers = vec![again];
            wire.a.apply(&DeviceUpdate { replace_peers: true, peers, ..DeviceUpdate::default() }, now);
        } else {
            for key in [b, absent(0).public_key] {
                wire.a.apply_peer(PeerUpdate { remove: true, ..PeerUpdate::new(key) }, now);
            }
            assert_eq!(wire.a.device.held(), (0, 0));
            wire.a.apply_peer(again, now);
        }
        wire.b.apply_peer(PeerUpdate { remove: true, ..PeerUpdate::new(a) }, now);
        assert_eq!(wire.b.device.held(), (0, 0));
        wire.b.apply_peer(peer_with(a, None, &["10.0.0.1/32", "fd00::1/128"]), now);
        wire.pass(Duration::from_millis(30));
    }
}
