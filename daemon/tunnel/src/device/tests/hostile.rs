//! Bytes of people who mean harm.

use proptest::prelude::*;

use super::*;

/// An established pair and one datagram of each kind that passed between them.
fn talked() -> (Wire, Vec<Seen>) {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let samples = [INITIATION, RESPONSE, DATA].map(|kind| wire.last(kind)).to_vec();
    (wire, samples)
}

#[test]
fn replays_are_dropped() {
    let (mut wire, _) = talked();
    wire.a.delivered.clear();
    wire.b.delivered.clear();
    wire.pass(Duration::from_secs(1));
    for seen in wire.seen.clone() {
        let to = if seen.to == wire.a.address { Side::A } else { Side::B };
        assert!(wire.receive(to, seen.from, &seen.bytes).is_empty(), "kind {}", seen.bytes[0]);
    }
    assert!(wire.a.delivered.is_empty() && wire.b.delivered.is_empty());
    assert_eq!(wire.b.dropped(Drop::ReplayedHandshake), 1);
    assert_eq!(wire.b.dropped(Drop::ReplayedData), 2);
    assert!(wire.both_ways());
}

#[test]
fn a_reordered_window_arrives_once_each() {
    let (mut wire, _) = talked();
    let sent: Vec<_> = (0..200).map(|size| wire.encrypt(Side::A, &a_to_b(size)).remove(0)).collect();
    wire.b.delivered.clear();
    for seen in sent.iter().rev().chain(&sent) {
        wire.receive(Side::B, seen.from, &seen.bytes);
    }
    assert_eq!(wire.b.delivered.len(), 200);
}

#[test]
fn counters_beyond_the_end_are_refused() {
    let (mut wire, samples) = talked();
    let mut data = samples[2].clone();
    for counter in [u64::MAX, u64::MAX - 1, u64::MAX - 1024, u64::MAX - (1 << 13)] {
        data.bytes[8..16].copy_from_slice(&counter.to_le_bytes());
        let to = if data.to == wire.a.address { Side::A } else { Side::B };
        assert!(wire.receive(to, data.from, &data.bytes).is_empty());
    }
    assert!(wire.both_ways());
}

#[test]
fn every_truncation_and_every_flipped_bit_is_dropped() {
    let (mut wire, samples) = talked();
    wire.a.delivered.clear();
    wire.b.delivered.clear();
    for sample in samples {
        let to = if sample.to == wire.a.address { Side::A } else { Side::B };
        for len in 0..sample.bytes.len() {
            assert!(wire.receive(to, sample.from, &sample.bytes[..len]).is_empty());
        }
        for bit in 0..8 * sample.bytes.len() {
            let mut bytes = sample.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(wire.receive(to, sample.from, &bytes).is_empty(), "bit {bit}");
        }
    }
    assert!(wire.a.delivered.is_empty() && wire.b.delivered.is_empty());
    assert!(wire.both_ways());
}

#[test]
fn a_flood_with_wrong_indices_does_not_raise_the_load() {
    let mut wire = Wire::with_limit(1);
    let mut sent = wire.encrypt(Side::A, &a_to_b(10));
    let initiation = sent.remove(0);
    let mut response = wire.receive(Side::B, initiation.from, &initiation.bytes).remove(0);
    let right = response.bytes.clone();
    for _ in 0..100 {
        for byte in &mut response.bytes[8..12] {
            *byte = byte.wrapping_add(77);
        }
        assert!(wire.receive(Side::A, response.from, &response.bytes).is_empty());
    }
    response.bytes = right;
    wire.carry(vec![response]);
    assert_eq!(wire.b.delivered, [a_to_b(10)]);
}

#[test]
fn a_stranger_gets_no_answer() {
    let mut wire = Wire::new();
    let stranger = Node::new("198.51.100.7:7", wire.now, 10);
    let b = wire.b.public();
    stranger.apply_peer(peer_with(b, Some(wire.b.address), &["10.0.0.2/32"]), wire.now);
    wire.a = stranger;
    let sent = wire.encrypt(Side::A, &a_to_b(10));
    assert!(wire.receive(Side::B, sent[0].from, &sent[0].bytes).is_empty());
    assert_eq!(wire.b.dropped(Drop::BadHandshake), 1);
}

#[test]
fn an_authenticated_peer_may_send_nonsense() {
    let (mut wire, _) = talked();
    let b = wire.b.public();
    // A length beyond the packet, a family that does not exist.
    let mut too_long = a_to_b(10);
    too_long[2] = 0xff;
    assert!(!wire.send(Side::A, &too_long));
    assert_eq!(wire.b.dropped(Drop::BadPacket), 1);
    // A length that ends inside the header.
    let mut too_short = a_to_b(10);
    too_short[2..4].copy_from_slice(&[0, 19]);
    wire.send(Side::A, &too_short);
    assert_eq!((wire.b.dropped(Drop::BadPacket), wire.b.delivered.len()), (2, 0));
    assert!(wire.a.peer(b).tx_bytes > 0);
    assert!(wire.both_ways());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_datagrams_never_panic(
        datagrams in prop::collection::vec((any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..300)), 1..50),
        kinds in any::<bool>(),
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
    ) {
        let (mut wire, samples) = talked();
        for (source, mut bytes) in datagrams {
            if kinds && bytes.len() > 12 {
                // The start of a real message.
                bytes[..12].copy_from_slice(&samples[usize::from(source[0]) % 3].bytes[..12]);
            }
            for side in [Side::A, Side::B] {
                wire.receive(side, SocketAddr::new(IpAddr::from(source), 9), &bytes);
            }
        }
        for packet in packets {
            wire.encrypt(Side::A, &packet);
        }
        prop_assert!(wire.both_ways());
    }
}
