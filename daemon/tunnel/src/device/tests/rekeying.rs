//! Keys that are renewed, that end, and that are forgotten, by a clock that tests move.

use super::*;

impl Wire {
    /// Time passes, and both ends do what is due, as often as devices look, and at the same moment.
    fn rest(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.pass(Duration::from_millis(250));
            let mut sent = self.tick(Side::A);
            sent.extend(self.tick(Side::B));
            self.carry(sent);
        }
    }

    /// Who has sent the initiations since `from`.
    fn initiators(&self, from: usize) -> Vec<SocketAddr> {
        self.seen[from..].iter().filter(|seen| seen.bytes[0] == INITIATION).map(|seen| seen.from).collect()
    }

    fn keys_held(&self) -> (usize, usize) {
        (self.a.device.keys_held(), self.b.device.keys_held())
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_initiator_renews_keys_when_it_sends() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    for round in 1..6 {
        wire.rest(Duration::from_millis(119_000));
        let from = wire.seen.len();
        assert!(wire.both_ways());
        wire.rest(s(1));
        assert!(wire.initiators(from).is_empty(), "not yet, round {round}");
        assert!(wire.both_ways());
        wire.rest(s(1));
        assert_eq!(wire.initiators(from), [wire.a.address], "round {round}");
        assert!(wire.both_ways());
    }
    assert!(wire.keys_held() <= (2, 2), "the last, and those in use: {:?}", wire.keys_held());
}

/// The responder never asks as long as the initiator does.
#[test]
fn keys_of_one_way_traffic_are_renewed_in_time() {
    for side in [Side::A, Side::B] {
        let mut wire = Wire::new();
        assert!(wire.both_ways());
        let packet = if side == Side::A { a_to_b(10) } else { b_to_a(10) };
        for second in 0..1000 {
            assert!(wire.send(side, &packet), "from {side:?} after {second} s");
            wire.rest(s(1));
        }
        let initiators = wire.initiators(0);
        assert!(initiators.iter().all(|from| *from == wire.a.address));
        assert!((6..=10).contains(&initiators.len()), "{}", initiators.len());
        assert_eq!(wire.seen.iter().filter(|seen| seen.bytes[0] == RESPONSE).count(), initiators.len());
    }
}

#[test]
fn keepalives_keep_the_keys_fresh() {
    let mut wire = Wire::new();
    let update = PeerUpdate { persistent_keepalive: Some(25), ..PeerUpdate::new(wire.b.public()) };
    wire.a.apply_peer(update, wire.now);
    wire.rest(s(1000));
    assert!((7..=9).contains(&wire.count(INITIATION)), "{}", wire.count(INITIATION));
    assert!(wire.send(Side::B, &b_to_a(10)), "at any time without a handshake");
}

#[test]
fn data_under_old_keys_arrives_while_new_ones_are_made() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    wire.rest(s(121));
    let mut late = Vec::new();
    let mut keep = |sent: Vec<Seen>| late.extend(sent);
    keep(wire.encrypt(Side::A, &a_to_b(1)));
    keep(wire.encrypt(Side::B, &b_to_a(1)));
    let initiation = wire.tick(Side::A);
    assert_eq!(initiation[0].bytes[0], INITIATION);
    keep(wire.encrypt(Side::A, &a_to_b(2)));
    let response = wire.receive(Side::B, initiation[0].from, &initiation[0].bytes);
    // B may not use the new keys before A has: it sends under the old.
    keep(wire.encrypt(Side::B, &b_to_a(2)));
    let keepalive = wire.receive(Side::A, response[0].from, &response[0].bytes);
    keep(wire.encrypt(Side::B, &b_to_a(3)));
    // From here on A sends under the new ones, and they prove themselves before the keepalive has come.
    let under_new = wire.encrypt(Side::A, &a_to_b(3));
    wire.a.delivered.clear();
    wire.b.delivered.clear();
    wire.carry(under_new);
    wire.carry(keepalive);
    wire.carry(late);
    assert_eq!(wire.b.delivered, [a_to_b(3), a_to_b(1), a_to_b(2)]);
    assert_eq!(wire.a.delivered, [b_to_a(1), b_to_a(2), b_to_a(3)]);
    for node in [&wire.a, &wire.b] {
        for reason in [Drop::UnknownIndex, Drop::BadData, Drop::ReplayedData] {
            assert_eq!(node.dropped(reason), 0, "{reason:?}");
        }
    }
}

#[test]
fn keys_end_after_180_seconds_and_are_forgotten() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let late = wire.encrypt(Side::A, &a_to_b(7));
    assert_eq!(wire.keys_held(), (1, 1));
    wire.pass(s(180) - Duration::from_millis(1));
    wire.carry(wire.seen[wire.seen.len() - 1..].to_vec());
    assert!(wire.b.delivered.contains(&a_to_b(7)), "until the last moment");
    wire.pass(Duration::from_millis(1));
    assert!(wire.receive(Side::B, late[0].from, &late[0].bytes).is_empty());
    assert_eq!(wire.b.dropped(Drop::UnknownIndex), 1, "not even before a tick");
    let sent = wire.encrypt(Side::A, &a_to_b(8));
    assert_eq!(sent[0].bytes[0], INITIATION, "nothing is sent under them");
    wire.tick(Side::A);
    wire.tick(Side::B);
    assert_eq!(wire.keys_held(), (0, 0));
    wire.carry(sent);
    assert!(wire.b.delivered.contains(&a_to_b(8)));
}

#[test]
fn nothing_is_kept_of_an_answer_that_nobody_uses() {
    let mut wire = Wire::new();
    let sent = wire.encrypt(Side::A, &a_to_b(7));
    assert_eq!(wire.receive(Side::B, sent[0].from, &sent[0].bytes).len(), 1);
    assert_eq!(wire.keys_held(), (0, 1));
    assert!(wire.b.peer(wire.a.public()).last_handshake.is_none(), "nobody has proved to have it");
    wire.pass(s(180));
    wire.tick(Side::B);
    assert_eq!(wire.keys_held(), (0, 0));
}

#[test]
fn a_peer_that_lost_its_keys_is_asked_for_new_ones() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    // It has restarted, and does not know where we are.
    let fresh = Device::new(MTU, LANES, HANDSHAKES_PER_SECOND, wire.now);
    wire.b.device = fresh;
    wire.b.apply(&wire.b.private_key_update(), wire.now);
    wire.b.apply_peer(peer_with(wire.a.public(), None, &["10.0.0.1/32"]), wire.now);
    assert!(!wire.send(Side::A, &a_to_b(10)));
    let from = wire.seen.len();
    wire.rest(s(14));
    assert!(wire.initiators(from).is_empty());
    wire.rest(s(2));
    assert_eq!(wire.initiators(from), [wire.a.address]);
    assert!(wire.both_ways());
}

#[test]
fn what_came_is_confirmed_after_ten_seconds() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    assert!(wire.send(Side::A, &a_to_b(10)));
    let from = wire.seen.len();
    wire.rest(s(9));
    assert_eq!(wire.seen.len(), from);
    wire.rest(s(60));
    let rest: Vec<_> = wire.seen[from..].iter().map(|seen| (seen.from, seen.bytes.len())).collect();
    assert_eq!(rest, [(wire.b.address, 32)], "by B, once, and A has no reason to doubt");
}

#[test]
fn initiations_stay_replays_for_ever() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let old = wire.last(INITIATION);
    for round in 1..4 {
        wire.rest(s(300));
        assert!(wire.receive(Side::B, old.from, &old.bytes).is_empty());
        assert_eq!(wire.b.dropped(Drop::ReplayedHandshake), round);
        assert!(wire.both_ways());
    }
    let last = wire.last(INITIATION);
    assert_ne!(last.bytes, old.bytes);
    for seen in [old, last] {
        assert!(wire.receive(Side::B, seen.from, &seen.bytes).is_empty());
    }
}

/// Who set its clock back is heard all the same.
#[test]
fn a_clock_that_is_set_back_cuts_nobody_off() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    wire.pass(s(200));
    let mut out = Datagrams::new(8);
    let clock = Clock { now: wire.now, wall: SystemTime::UNIX_EPOCH };
    let device = &wire.a.device;
    with_segments(&a_to_b(9), |segments| device.lane(0, clock).packets(segments, &mut out));
    let sent = wire.take(Side::A, &out);
    assert_eq!(sent[0].bytes[0], INITIATION);
    wire.carry(sent);
    assert!(wire.b.delivered.contains(&a_to_b(9)));
}

/// The first answer comes when the second try is under way; the second one is answered, too.
#[test]
fn an_answer_may_come_later_than_the_next_try() {
    let mut wire = Wire::new();
    let first = wire.encrypt(Side::A, &a_to_b(10)).remove(0);
    let response = wire.receive(Side::B, first.from, &first.bytes);
    wire.pass(s(6));
    let second = wire.tick(Side::A);
    assert_eq!(second[0].bytes[0], INITIATION);
    wire.carry(response);
    assert_eq!(wire.b.delivered, [a_to_b(10)]);
    wire.carry(second);
    assert!(wire.both_ways());
    assert_eq!((wire.count(INITIATION), wire.count(RESPONSE)), (2, 2));
    let last = wire.last(RESPONSE);
    assert!(wire.receive(Side::A, last.from, &last.bytes).is_empty(), "each counts once");
    assert!(wire.both_ways());
}

/// Keys that were agreed on with the former PSK do not pass for those that the new one asks for.
#[test]
fn an_answer_with_the_former_psk_is_none() {
    let mut wire = Wire::new();
    let sent = wire.encrypt(Side::A, &a_to_b(10));
    let response = wire.receive(Side::B, sent[0].from, &sent[0].bytes);
    let psk = Some(Zeroizing::new([7; 32]));
    let key = wire.a.public();
    wire.b.apply_peer(PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(key) }, wire.now);
    wire.carry(response);
    assert!(wire.b.delivered.is_empty());
    assert!(wire.b.peer(key).last_handshake.is_none());
    let key = wire.b.public();
    wire.a.apply_peer(PeerUpdate { preshared_key: psk, ..PeerUpdate::new(key) }, wire.now);
    wire.pass(s(1));
    // A's first packet is under the keys that B has forgotten, but it brings new ones.
    wire.send(Side::A, &a_to_b(10));
    assert_eq!(wire.count(INITIATION), 2);
    assert!(wire.both_ways());
}

#[test]
fn the_endpoint_follows_the_proof_of_keys_not_the_wish_for_them() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let (home, elsewhere) = (wire.a.address, "[2001:db8::9]:9".parse().unwrap());
    let key = wire.a.public();
    wire.rest(s(121));
    wire.encrypt(Side::A, &a_to_b(10));
    wire.a.address = elsewhere;
    let initiation = wire.tick(Side::A);
    let response = wire.receive(Side::B, elsewhere, &initiation[0].bytes);
    assert_eq!((response[0].bytes[0], response[0].to), (RESPONSE, elsewhere));
    assert_eq!(wire.b.peer(key).endpoint, Some(home));
    wire.carry(response);
    assert_eq!(wire.b.peer(key).endpoint, Some(elsewhere));
    assert!(wire.both_ways());
}

/// Both ends then have keys that the other has asked for, and neither would have to ask for the next.
#[test]
fn initiations_that_have_crossed_cross_once() {
    let mut wire = Wire::new();
    wire.b.apply_peer(peer_with(wire.a.public(), Some(wire.a.address), &[]), wire.now);
    let mut sent = wire.encrypt(Side::A, &a_to_b(10));
    sent.extend(wire.encrypt(Side::B, &b_to_a(10)));
    wire.carry(sent);
    assert_eq!(wire.count(INITIATION), 2);
    for second in 0..1000 {
        assert!(wire.both_ways(), "after {second} s");
        wire.rest(s(1));
    }
    let later = &wire.initiators(0)[2..];
    assert!((7..=8).contains(&later.len()), "{}", later.len());
    assert!(later.iter().all(|from| *from == later[0]), "one of them asks: {later:?}");
}

/// What was sent before the second crossing arrives after it.
#[test]
fn two_crossings_in_a_row_lose_nothing() {
    let mut wire = Wire::new();
    wire.b.apply_peer(peer_with(wire.a.public(), Some(wire.a.address), &[]), wire.now);
    let mut late = Vec::new();
    for round in 1..5 {
        let psk = Some(Zeroizing::new([round; 32]));
        for (node, peer) in [(&wire.a, wire.b.public()), (&wire.b, wire.a.public())] {
            node.apply_peer(PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(peer) }, wire.now);
        }
        let mut sent = wire.encrypt(Side::A, &a_to_b(10));
        sent.extend(wire.encrypt(Side::B, &b_to_a(10)));
        let (data, initiations): (Vec<_>, Vec<_>) = sent.into_iter().partition(|seen| seen.bytes[0] == DATA);
        wire.carry(initiations);
        assert_eq!(wire.count(INITIATION), 2 * usize::from(round));
        late.extend(data);
        wire.a.delivered.clear();
        wire.b.delivered.clear();
        wire.carry(std::mem::take(&mut late));
        if round > 1 {
            assert_eq!(wire.b.delivered, [a_to_b(10)], "round {round}");
            assert_eq!(wire.a.delivered, [b_to_a(10)], "round {round}");
        }
        wire.pass(s(1));
    }
}

/// A way that takes longer than an answer is waited for: the peer has forgotten its first answer when we get that.
#[test]
fn a_slow_way_ends_in_keys_that_both_have() {
    let mut wire = Wire::new();
    let first = wire.encrypt(Side::A, &a_to_b(10)).remove(0);
    wire.pass(s(6));
    let second = wire.tick(Side::A).remove(0);
    let mut responses = wire.receive(Side::B, first.from, &first.bytes);
    wire.pass(s(1));
    responses.extend(wire.receive(Side::B, second.from, &second.bytes));
    assert_eq!(responses.len(), 2);
    for response in responses {
        wire.carry(vec![response]);
    }
    assert!(wire.both_ways());
    assert_eq!(wire.count(INITIATION), 2);
}
