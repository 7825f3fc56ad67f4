//! Packets, where they may come from and go to, and what is counted.

use super::*;

#[test]
fn ipv6_and_every_size_pass() {
    let mut wire = Wire::new();
    for payload in [0, 1, 15, 16, 17, 1000, 1380, 1400, 9000, MAX_PACKET - 100] {
        assert!(wire.send(Side::A, &packet("10.0.0.1", "10.0.0.2", payload)), "IPv4, {payload}");
        assert!(wire.send(Side::B, &packet("fd00::2", "fd00::1", payload)), "IPv6, {payload}");
    }
}

#[test]
fn lengths_are_padded_but_not_beyond_the_mtu() {
    for (len, padded) in [(20, 32), (32, 32), (33, 48), (1409, 1420), (1420, 1420), (1421, 1421)] {
        assert_eq!(padded_len(len, MTU), padded, "{len}");
    }
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    assert_eq!(wire.encrypt(Side::A, &a_to_b(81))[0].bytes.len(), 32 + 112);
    assert_eq!(wire.encrypt(Side::A, &a_to_b(1400))[0].bytes.len(), 32 + 1420);
}

#[test]
fn a_foreign_source_is_dropped() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    assert!(!wire.send(Side::A, &packet("10.0.0.3", "10.0.0.2", 10)));
    assert!(!wire.send(Side::A, &packet("10.0.0.2", "10.0.0.2", 10)));
    assert_eq!(wire.b.dropped(Drop::BadSource), 2);
    // The longest match of the whole device decides, not the sender's own networks.
    let now = wire.now;
    let key = wire.a.public();
    wire.b.apply_peer(peer_with(key, None, &["10.0.0.0/8"]), now);
    wire.b.apply_peer(peer_with([3; 32], None, &["10.0.0.1/32"]), now);
    assert!(!wire.send(Side::A, &a_to_b(10)), "the other peer's now");
    assert!(wire.send(Side::A, &packet("10.0.0.3", "10.0.0.2", 10)));
    assert_eq!(wire.b.dropped(Drop::BadSource), 3);
}

#[test]
fn what_has_no_way_is_counted() {
    let mut wire = Wire::new();
    assert!(wire.encrypt(Side::A, &packet("10.0.0.1", "192.0.2.77", 10)).is_empty());
    assert!(wire.encrypt(Side::B, &b_to_a(10)).is_empty());
    for nonsense in [&[0][..], &[0x45; 19], &[0x60; 39], &[0xff; 100]] {
        assert!(wire.encrypt(Side::A, nonsense).is_empty());
    }
    assert_eq!(wire.a.dropped(Drop::NoPeer), 1);
    assert_eq!(wire.b.dropped(Drop::NoEndpoint), 1);
    assert_eq!(wire.a.dropped(Drop::NotIp), 4);
    // Nothing was queued for later by the dropped one.
    assert!(wire.send(Side::A, &a_to_b(10)));
    assert!(wire.a.delivered.is_empty());
}

#[test]
fn the_endpoint_follows_authenticated_packets_only() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let key = wire.a.public();
    assert_eq!(wire.b.peer(key).endpoint, Some(wire.a.address));
    let home = wire.a.address;
    let elsewhere: SocketAddr = "[2001:db8::9]:9".parse().unwrap();

    // Replays of everything ever sent, an initiation with a right mac1 among them, and garbled data.
    for seen in wire.seen.clone() {
        wire.receive(Side::B, elsewhere, &seen.bytes);
    }
    let mut garbled = wire.encrypt(Side::A, &a_to_b(10)).remove(0);
    *garbled.bytes.last_mut().unwrap() ^= 1;
    wire.receive(Side::B, elsewhere, &garbled.bytes);
    assert_eq!(wire.b.peer(key).endpoint, Some(home));

    // The peer moves.
    wire.a.address = elsewhere;
    assert!(wire.both_ways());
    assert_eq!(wire.b.peer(key).endpoint, Some(elsewhere));
    // IPv4 as a dual-stack socket shows it is IPv4.
    wire.a.address = "[::ffff:192.0.2.1]:5".parse().unwrap();
    assert!(wire.send(Side::A, &a_to_b(10)));
    assert_eq!(wire.b.peer(key).endpoint, Some("192.0.2.1:5".parse().unwrap()));
}

#[test]
fn a_replayed_initiation_moves_no_endpoint_of_a_fresh_session() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let old = wire.last(INITIATION);
    let key = wire.a.public();
    let mut psk = PeerUpdate::new(key);
    psk.preshared_key = Some(Zeroizing::new([5; 32]));
    wire.b.apply_peer(psk, wire.now);
    wire.pass(Duration::from_secs(1));
    wire.receive(Side::B, "203.0.113.66:6".parse().unwrap(), &old.bytes);
    assert_eq!(wire.b.peer(key).endpoint, Some(wire.a.address));
    assert!(wire.both_ways());
}

#[test]
fn bytes_are_counted_with_overhead() {
    let mut wire = Wire::new();
    assert!(wire.send(Side::A, &a_to_b(76)));
    let (a, b) = (wire.a.public(), wire.b.public());
    // Initiation, then the keepalive and the packet; the response the other way.
    let (forth, back) = (148 + 32 + (96 + 32), 92);
    let (at_a, at_b) = (wire.a.peer(b), wire.b.peer(a));
    assert_eq!((at_a.tx_bytes, at_a.rx_bytes), (forth, back));
    assert_eq!((at_b.tx_bytes, at_b.rx_bytes), (back, forth));
}

#[test]
fn keepalives_start_at_once_and_keep_their_interval() {
    let mut wire = Wire::new();
    let key = wire.b.public();
    let mut update = PeerUpdate::new(key);
    update.persistent_keepalive = Some(25);
    wire.a.apply_peer(update.clone(), wire.now);
    let sent = wire.tick(Side::A);
    assert_eq!(sent[0].bytes[0], INITIATION, "without a packet of anybody");
    wire.carry(sent);
    assert!(wire.a.peer(key).last_handshake.is_some());
    assert!(wire.tick(Side::A).is_empty());
    wire.pass(Duration::from_secs(24));
    assert!(wire.tick(Side::A).is_empty());
    assert!(wire.both_ways(), "traffic puts it off");
    // What B sent is to be confirmed, which is as good as a keepalive.
    wire.pass(Duration::from_secs(10));
    let sent = wire.tick(Side::A);
    assert_eq!((sent.len(), sent[0].bytes.len()), (1, 32));
    wire.carry(sent);
    wire.pass(Duration::from_secs(24));
    assert!(wire.tick(Side::A).is_empty());
    wire.pass(Duration::from_secs(1));
    let sent = wire.tick(Side::A);
    assert_eq!((sent.len(), sent[0].bytes.len()), (1, 32));
    update.persistent_keepalive = Some(0);
    wire.a.apply_peer(update, wire.now);
    wire.pass(Duration::from_secs(60));
    assert!(wire.tick(Side::A).is_empty());
}

#[test]
fn keepalives_wait_for_key_and_endpoint() {
    let mut wire = Wire::new();
    let key = wire.a.public();
    let mut update = PeerUpdate::new(key);
    update.persistent_keepalive = Some(10);
    wire.b.apply_peer(update, wire.now);
    assert!(wire.tick(Side::B).is_empty(), "where to?");
    wire.b.apply_peer(peer_with(key, Some(wire.a.address), &[]), wire.now);
    let sent = wire.tick(Side::B);
    assert_eq!(sent.len(), 1);
    wire.carry(sent);
    assert!(wire.both_ways());
}

#[test]
fn a_peer_that_is_away_costs_one_keepalive_not_many() {
    let mut wire = Wire::new();
    let key = wire.b.public();
    let mut update = PeerUpdate::new(key);
    update.persistent_keepalive = Some(1);
    wire.a.apply_peer(update, wire.now);
    for _ in 0..100 {
        wire.tick(Side::A);
        wire.pass(Duration::from_secs(1));
    }
    assert_eq!(wire.seen.len(), wire.count(INITIATION), "a handshake is under way");
    assert!((17..=21).contains(&wire.seen.len()), "{}", wire.seen.len());
    let last = wire.last(INITIATION);
    wire.carry(vec![last]);
    let keepalives = wire.seen.iter().filter(|seen| seen.bytes.len() == 32).count();
    assert_eq!(keepalives, 1);
}

#[test]
fn a_full_batch_delays_but_loses_nothing() {
    let mut wire = Wire::new();
    let packets: Vec<_> = (0..200).map(a_to_b).collect();
    let mut sent = Vec::new();
    for packet in &packets {
        sent.extend(wire.encrypt(Side::A, packet));
    }
    let response = wire.receive(Side::B, sent[0].from, &sent[0].bytes).remove(0);
    // A small batch for the answer to the response, which lets 200 packets go.
    let (mut out, mut unused) = (Datagrams::new(8), Packets::new(1));
    wire.a.device.lane(0, wire.clock()).datagram(response.from, &response.bytes, &mut out, &mut unused);
    assert_eq!(out.len(), 8);
    assert_eq!(wire.a.dropped(Drop::Deferred), 1);
    let mut sent = wire.take(Side::A, &out);
    sent.extend(wire.tick(Side::A));
    wire.carry(sent);
    assert_eq!(wire.b.delivered, packets);
}

#[test]
fn several_lanes_share_a_session() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let clock = wire.clock();
    let device = &wire.a.device;
    let sent = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let sent = &sent;
            scope.spawn(move || {
                let mut out = Datagrams::new(64);
                for round in 0..10 {
                    for size in 0..50 {
                        let packet = a_to_b(lane * 100 + round * 7 + size);
                        with_segments(&packet, |segments| {
                            device.lane(lane, clock).packets(segments, &mut out)
                        });
                    }
                    for (bytes, note) in out.iter() {
                        assert_eq!(note.lane, 0, "all leave by the session's own lane");
                        sent.lock().unwrap().push(bytes.to_vec());
                    }
                    out.clear();
                }
            });
        }
    });
    let sent = sent.into_inner().unwrap();
    assert_eq!(sent.len(), 2000);
    wire.b.delivered.clear();
    let from = wire.a.address;
    let mut order: Vec<_> = sent.iter().collect();
    order.sort_by_key(|bytes| u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
    for bytes in order {
        wire.receive(Side::B, from, bytes);
    }
    assert_eq!(wire.b.delivered.len(), 2000);
}

#[test]
fn a_full_batch_is_no_panic() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let data = wire.encrypt(Side::B, &b_to_a(10)).remove(0);
    let (mut out, mut packets) = (Datagrams::new(1), Packets::new(1));
    let lane = wire.a.device.lane(0, wire.clock());
    for _ in 0..2 {
        with_segments(&a_to_b(10), |segments| lane.packets(segments, &mut out));
    }
    assert_eq!((out.len(), wire.a.dropped(Drop::NoRoom)), (1, 1));
    lane.datagram(data.from, &data.bytes, &mut out, &mut packets);
    assert_eq!((packets.len(), wire.a.dropped(Drop::NoRoom)), (0, 2));
    out.clear();
    lane.datagram(data.from, &data.bytes, &mut out, &mut packets);
    lane.datagram(data.from, &data.bytes, &mut out, &mut packets);
    assert_eq!((packets.len(), wire.a.dropped(Drop::NoRoom)), (1, 3));
}

#[test]
fn nothing_overtakes_what_waited_for_keys() {
    let mut wire = Wire::new();
    let packets: Vec<_> = (0..200).map(a_to_b).collect();
    let sent: Vec<_> = packets[..150].iter().flat_map(|packet| wire.encrypt(Side::A, packet)).collect();
    let response = wire.receive(Side::B, sent[0].from, &sent[0].bytes).remove(0);
    let (mut out, mut unused) = (Datagrams::new(8), Packets::new(1));
    wire.a.device.lane(0, wire.clock()).datagram(response.from, &response.bytes, &mut out, &mut unused);
    let mut sent = wire.take(Side::A, &out);
    // More come before the tick that would send the rest.
    for packet in &packets[150..] {
        let (mut out, clock) = (Datagrams::new(3), wire.clock());
        with_segments(packet, |segments| wire.a.device.lane(0, clock).packets(segments, &mut out));
        sent.extend(wire.take(Side::A, &out));
    }
    sent.extend(wire.tick(Side::A));
    wire.carry(sent);
    assert_eq!(wire.b.delivered, packets);
}

#[test]
fn packets_wait_for_keys_up_to_a_number() {
    let mut wire = Wire::new();
    let sent: Vec<_> = (0..300).flat_map(|size| wire.encrypt(Side::A, &a_to_b(size))).collect();
    assert_eq!(wire.a.dropped(Drop::NoKeys), 300 - 256);
    wire.carry(sent);
    assert_eq!(wire.b.delivered.len(), 256);
}
