//! Splitting.

use super::*;

proptest! {
    #[test]
    fn a_super_packet_becomes_what_a_naive_sender_sends(spec in spec(9000), segment in 1..1500u16) {
        prop_assume!(!spec.payload.is_empty());
        let (header, packet) = spec.super_packet(segment);
        prop_assert_eq!(split(header, &packet).unwrap(), spec.naive_split(segment.into()));
    }

    #[test]
    fn a_missing_checksum_is_completed(spec in spec(1500)) {
        let (header, packet) = spec.super_packet(0);
        let parts = split(VnetHeader { kind: Kind::Single, ..header }, &packet).unwrap();
        let mut expected = spec.build();
        // As the kernel, which does not look whether zero would mean anything.
        let at = spec.l4() + usize::from(header.checksum_offset);
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        prop_assert_eq!(parts, [expected]);
    }

    #[test]
    fn whatever_the_header_claims_nothing_panics_or_grows(
        spec in spec(3000),
        bytes in any::<[u8; LEN]>(),
        garbled in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        honest in any::<bool>(),
    ) {
        let (honest_header, mut packet) = spec.super_packet(100);
        for (at, byte) in garbled {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        let Some(mut header) = VnetHeader::decode(&bytes) else { return Ok(()) };
        if honest {
            header = VnetHeader { segment: header.segment % 50, ..honest_header };
        }
        if let Ok(parts) = split(header, &packet) {
            // Each byte of payload once, whatever else.
            let bound = packet.len().div_ceil(header.segment.max(1).into());
            prop_assert!(parts.len() <= bound.max(1));
            prop_assert!(parts.iter().all(|part| part.len() <= packet.len()));
        }
    }

    #[test]
    fn random_bytes_never_panic(packet in prop::collection::vec(any::<u8>(), 0..200), bytes in any::<[u8; LEN]>()) {
        if let Some(header) = VnetHeader::decode(&bytes) {
            let _ = split(header, &packet);
        }
    }
}

fn tcp(payload: usize) -> Spec {
    Spec {
        ipv6: false,
        tcp: true,
        flow: 1,
        class: 0,
        hops: 64,
        id: 0xffff,
        dont_fragment: true,
        sequence: u32::MAX - 10,
        flags: 0x99,
        options: 3,
        payload: (0..payload).map(|byte| byte as u8).collect(),
    }
}

#[test]
fn flags_numbers_and_wraps() {
    let (header, packet) = tcp(250).super_packet(100);
    let parts = split(header, &packet).unwrap();
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [152, 152, 102]);
    // CWR on the first alone, FIN and PSH on the last alone, ACK on all.
    assert_eq!(parts.iter().map(|part| part[33]).collect::<Vec<_>>(), [0x90, 0x10, 0x19]);
    assert_eq!(
        parts.iter().map(|part| part[4..6].to_vec()).collect::<Vec<_>>(),
        [[255, 255], [0, 0], [0, 1]]
    );
    assert_eq!(parts[1][24..28], 89u32.to_be_bytes());
}

#[test]
fn lies_are_refused() {
    let (honest, packet) = tcp(250).super_packet(100);
    let lies = [
        VnetHeader { segment: 0, ..honest },
        VnetHeader { kind: Kind::Tcp6, ..honest },
        VnetHeader { kind: Kind::Udp, ..honest },
        VnetHeader { checksum_start: 24, ..honest },
        VnetHeader { checksum_offset: 6, ..honest },
        VnetHeader { kind: Kind::Single, checksum_start: u16::MAX, ..honest },
        VnetHeader { kind: Kind::Single, checksum_offset: 300, ..honest },
        VnetHeader { kind: Kind::Single, checksum_start: 301, checksum_offset: 0, ..honest },
    ];
    for lie in lies {
        assert_eq!(split(lie, &packet), Err(Malformed), "{lie:?}");
    }
    // TCP's header is said to be longer than the packet, or shorter than it can be; IP's, too.
    for (at, byte) in [(32, 0xf0), (32, 0x40), (0, 0x44), (0, 0x4f), (9, 1), (6, 0x20)] {
        let mut packet = tcp(5).super_packet(100).1;
        packet[at] = byte;
        assert_eq!(split(honest, &packet), Err(Malformed), "{at}: {byte:#x}");
    }
    assert_eq!(split(VnetHeader::SINGLE, &[]), Err(Malformed));
    assert_eq!(split(VnetHeader::SINGLE, &[0x45; 65_536]), Err(Malformed));
    assert!(Segments::new(VnetHeader::SINGLE, &mut [0x45; 100], 85).is_err(), "no room for padding");
    // UFO, kinds that do not exist, tunnels of nothing that is split, and of both families.
    for kind in [3, 6, 0x20, 0x40, 0x61] {
        let mut bytes = [0; LEN];
        bytes[1] = kind;
        assert_eq!(VnetHeader::decode(&bytes), None);
    }
}

#[test]
fn extension_headers_are_headers() {
    let inner = Spec { ipv6: true, ..tcp(250) };
    let (mut header, plain) = inner.super_packet(100);
    // Destination options of 8 bytes, then of 16.
    let extensions = [60, 0, 1, 4, 0, 0, 0, 0, 6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut packet = [&plain[..40], &extensions, &plain[40..]].concat();
    packet[6] = 60;
    header.checksum_start += 24;
    let parts = split(header, &packet).unwrap();
    let expected = inner.naive_split(100);
    for (part, plain) in parts.iter().zip(&expected) {
        assert_eq!(part[64..], plain[40..]);
        assert_eq!(part[40..64], extensions);
        assert_eq!(usize::from(u16::from_be_bytes([part[4], part[5]])), part.len() - 40);
    }
    assert_eq!(parts.len(), expected.len());
}
