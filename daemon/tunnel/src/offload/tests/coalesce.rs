//! Coalescing.

use std::collections::BTreeMap;

use super::*;

/// A stretch of one flow: packets that may be coalesced, with something in the middle that may forbid it.
#[derive(Clone, Debug)]
struct Stretch {
    spec: Spec,
    segment: usize,
    damage: Option<(prop::sample::Index, prop::sample::Index, u8)>,
}

impl Stretch {
    fn packets(&self) -> Vec<Vec<u8>> {
        let mut packets = match self.spec.payload.is_empty() {
            true => vec![self.spec.build()],
            false => self.spec.naive_split(self.segment),
        };
        if let Some((packet, byte, value)) = &self.damage {
            let packet = packet.get_mut(&mut packets);
            *byte.get_mut(packet) = *value;
        }
        packets
    }
}

fn stretch() -> impl Strategy<Value = Stretch> {
    let damage = prop::option::weighted(0.2, any::<(prop::sample::Index, prop::sample::Index, u8)>());
    (spec(3000), 20..700usize, damage).prop_map(|(spec, segment, damage)| Stretch { spec, segment, damage })
}

/// Stretches of several flows, interleaved in an order of chance, each in its own.
fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
    (prop::collection::vec(stretch(), 1..6), prop::collection::vec(any::<prop::sample::Index>(), 200))
        .prop_map(|(stretches, turns)| {
            let mut queues: Vec<Vec<Vec<u8>>> = stretches.iter().map(Stretch::packets).collect();
            queues.iter_mut().for_each(|queue| queue.reverse());
            let mut packets = Vec::new();
            for turn in turns {
                queues.retain(|queue| !queue.is_empty());
                if queues.is_empty() {
                    break;
                }
                let queue = turn.get_mut(&mut queues);
                packets.extend(queue.pop());
            }
            packets
        })
}

/// Packets by flow, each flow in its order; what belongs to no flow under its first bytes.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        let key = match super::super::layout::Layout::of(packet) {
            Some(layout) => {
                let transport = [layout.transport as u8];
                [&transport, &packet[layout.addresses()], &packet[layout.l4..layout.l4 + 4]].concat()
            }
            None => Vec::new(),
        };
        flows.entry(key).or_default().push(packet.clone());
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn splitting_gives_back_what_was_coalesced(packets in traffic()) {
        let mut again = Vec::new();
        for (header, packet) in coalesce(&packets) {
            again.extend(split(header, &packet).unwrap());
        }
        prop_assert_eq!(by_flow(&again), by_flow(&packets));
    }

    #[test]
    fn a_flow_that_was_split_becomes_one_again(
        spec in spec(9000),
        segment in 200..1500u16,
        // What the kernel coalesces: ACK, with CWR on the first segment, PSH and FIN on the last, ECE on all.
        flags in prop_oneof![Just(0x10u8), Just(0x18), Just(0x11), Just(0x19), Just(0x90), Just(0x99), Just(0xd8)],
    ) {
        let spec = Spec { flags, ..spec };
        prop_assume!(spec.payload.len() > usize::from(segment));
        let (header, packet) = spec.super_packet(segment);
        let parts = split(header, &packet).unwrap();
        prop_assert_eq!(&parts, &spec.naive_split(segment.into()));
        let written = coalesce(&parts);
        prop_assert_eq!(written.len(), 1);
        // That there is a CWR is told of TCP alone.
        let expected = VnetHeader { header_len: 0, ecn: spec.tcp && header.ecn, ..header };
        prop_assert_eq!(VnetHeader { header_len: 0, ..written[0].0 }, expected);
        prop_assert_eq!(&written[0].1, &packet);
    }

    #[test]
    fn random_bytes_come_out_as_they_are(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)) {
        let written: Vec<_> = coalesce(&packets).into_iter().map(|(_, packet)| packet).collect();
        prop_assert_eq!(written, packets);
    }
}

fn flow(tcp: bool) -> Spec {
    Spec {
        ipv6: false,
        tcp,
        flow: 1,
        class: 0,
        hops: 64,
        id: 5,
        dont_fragment: true,
        sequence: 1000,
        flags: 0x10,
        options: 3,
        payload: vec![7; 1000],
    }
}

/// How many packets each written piece carries.
fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    coalesce(packets)
        .iter()
        .map(|(header, packet)| split(*header, packet).map_or(0, |parts| parts.len()))
        .collect()
}

#[test]
fn what_must_not_be_coalesced_is_not() {
    let base = flow(true).naive_split(100);
    assert_eq!(counts(&base), [10]);
    let changed = |change: &dyn Fn(&mut Spec)| {
        let mut packets = base.clone();
        let mut odd = flow(true);
        odd.payload.truncate(100);
        (odd.sequence, odd.id) = (1500, 10);
        change(&mut odd);
        packets[5] = odd.build();
        counts(&packets)
    };
    assert_eq!(changed(&|_| {}), [10], "the same as before");
    // What differs stands alone, or begins the next.
    assert_eq!(changed(&|odd| odd.hops = 63), [5, 1, 4]);
    assert_eq!(changed(&|odd| odd.class = 1), [5, 1, 4]);
    assert_eq!(changed(&|odd| odd.dont_fragment = false), [5, 1, 4]);
    assert_eq!(changed(&|odd| odd.id = 50), [5, 1, 4]);
    assert_eq!(changed(&|odd| odd.sequence = 1400), [5, 1, 4]);
    assert_eq!(changed(&|odd| odd.options = 4), [5, 1, 4]);
    for flags in [0x12, 0x14, 0x30, 0x50, 0x00] {
        assert_eq!(changed(&|odd| odd.flags = flags), [5, 1, 4], "{flags:#x}");
    }
    // CWR is for the first segment only.
    assert_eq!(changed(&|odd| odd.flags = 0x90), [5, 5]);
    // A push ends it, with itself.
    assert_eq!(changed(&|odd| odd.flags = 0x18), [6, 4]);
    assert_eq!(changed(&|odd| odd.flags = 0x11), [6, 4]);
    // Less payload ends it; more begins the next.
    assert_eq!(changed(&|odd| odd.payload.truncate(99)), [6, 4]);
    assert_eq!(changed(&|odd| odd.payload.push(7)), [5, 1, 4]);
    assert_eq!(changed(&|odd| odd.payload.clear()), [5, 1, 4]);
    // Another flow in between does not matter.
    assert_eq!(changed(&|odd| odd.flow = 2), [5, 1, 4]);
}

#[test]
fn interleaved_flows_are_told_apart_up_to_a_number() {
    let flows = |count: u8| -> Vec<Vec<u8>> {
        let flows: Vec<_> =
            (1..=count).map(|number| Spec { flow: number, ..flow(true) }.naive_split(500)).collect();
        (0..2).flat_map(|turn| flows.iter().map(move |flow| flow[turn].clone()).collect::<Vec<_>>()).collect()
    };
    assert_eq!(counts(&flows(16)), [2; 16]);
    assert_eq!(counts(&flows(17)), [1; 34], "each pushes out the one that comes next");
}

#[test]
fn nothing_of_a_flow_leaves_before_what_came_first() {
    let data = flow(true).naive_split(100);
    let mut fragment = data[5].clone();
    fragment[6] = 0x20;
    let mut packets = data.clone();
    packets.insert(5, fragment);
    assert_eq!(counts(&packets), [5, 1, 5], "a fragment may be of any flow");
    // Of the same flow, and not to be coalesced.
    let mut pure = flow(true);
    pure.payload.clear();
    let mut packets = data;
    packets.insert(5, pure.build());
    assert_eq!(counts(&packets), [5, 1, 5]);
}

#[test]
fn batches_have_nothing_to_do_with_each_other() {
    let mut coalescer = Coalescer::new(true, true);
    let packets = flow(true).naive_split(100);
    for part in packets.chunks(4) {
        let slices: Vec<&[u8]> = part.iter().map(Vec::as_slice).collect();
        let mut counts = Vec::new();
        coalescer.coalesce(&slices, |_, count| {
            counts.push(count);
            true
        });
        assert_eq!(counts, [part.len()]);
    }
}

#[test]
fn a_wrong_checksum_comes_out_wrong() {
    for tcp in [false, true] {
        let good = flow(tcp).naive_split(100);
        let l4_checksum = if tcp { 36 } else { 26 };
        for at in [10, l4_checksum, good[3].len() - 1] {
            let mut packets = good.clone();
            packets[3][at] ^= 0x40;
            let written = coalesce(&packets);
            let alone: Vec<_> = written.iter().filter(|(_, packet)| *packet == packets[3]).collect();
            assert_eq!(alone.len(), 1, "byte {at} untouched, and for itself");
            assert_eq!(alone[0].0, VnetHeader::SINGLE, "the kernel is to look itself");
            assert_eq!(written.len(), 3);
        }
    }
    // No checksum at all is not repaired either.
    let mut packets = flow(false).naive_split(100);
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(counts(&packets), [1; 10]);
}

#[test]
fn identifications_that_stay_the_same_are_fine_where_nothing_is_fragmented() {
    for (dont_fragment, expected) in [(true, vec![10]), (false, vec![1; 10])] {
        let packets: Vec<_> = (0..10)
            .map(|number| {
                let mut spec = Spec { id: 0, dont_fragment, sequence: 1000 + 100 * number, ..flow(true) };
                spec.payload.truncate(100);
                spec.build()
            })
            .collect();
        assert_eq!(counts(&packets), expected);
    }
}

#[test]
fn super_packets_have_limits() {
    let mut long = flow(true);
    long.payload = vec![1; 130_000];
    let sizes: Vec<_> = coalesce(&long.naive_split(1368)).iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(sizes, [52 + 47 * 1368, 52 + 47 * 1368, 52 + 130_000 - 94 * 1368]);
    let mut many = flow(false);
    many.payload = vec![1; 100 * 64];
    assert_eq!(counts(&many.naive_split(64)), [64, 36]);
}

#[test]
fn only_what_the_kernel_takes_is_coalesced() {
    for (tcp, udp) in [(true, false), (false, true), (false, false)] {
        for is_tcp in [true, false] {
            let packets = flow(is_tcp).naive_split(100);
            let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            let mut counts = Vec::new();
            Coalescer::new(tcp, udp).coalesce(&slices, |_, count| {
                counts.push(count);
                true
            });
            assert_eq!(counts.len(), if if is_tcp { tcp } else { udp } { 1 } else { 10 });
        }
    }
}

#[test]
fn what_is_refused_is_written_packet_by_packet() {
    let packets = [flow(true).naive_split(400), flow(false).naive_split(500)].concat();
    let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut written = Vec::new();
    Coalescer::new(true, true).coalesce(&slices, |parts, count| {
        if count == 1 {
            written.push(parts[1].to_vec());
        }
        count == 1
    });
    assert_eq!(written, packets);
}
