//! Splitting of packets in packets.

use super::super::vnet::{TUNNEL_CHECKSUM, Tunnel};
use super::*;

/// A packet in a tunnel.
#[derive(Clone, Debug)]
struct Nested {
    /// Around it; its payload comes of the rest.
    outer: Spec,
    checksum: bool,
    /// Between both: the tunnel's header, and Ethernet's if there is one.
    between: Vec<u8>,
    inner: Spec,
}

impl Nested {
    /// As a sender without any offload makes it.
    fn build(&self, inner: &[u8]) -> Vec<u8> {
        let outer = self.around(inner);
        let mut packet = outer.build();
        if !self.checksum {
            packet[outer.l4() + 6..outer.l4() + 8].fill(0);
        }
        packet
    }

    fn around(&self, inner: &[u8]) -> Spec {
        Spec { payload: [&self.between, inner].concat(), ..self.outer.clone() }
    }

    /// As the kernel hands it over.
    fn super_packet(&self, segment: u16) -> (VnetHeader, Vec<u8>) {
        let (header, inner) = self.inner.super_packet(segment);
        let outer = self.around(&inner);
        let (_, mut packet) = outer.super_packet(0);
        if !self.checksum {
            packet[outer.l4() + 6..outer.l4() + 8].fill(0);
        }
        let begin = outer.headers() + self.between.len();
        let header = VnetHeader {
            flags: header.flags | if self.checksum { TUNNEL_CHECKSUM } else { 0 },
            header_len: 0,
            checksum_start: header.checksum_start + begin as u16,
            tunnel: Some(Tunnel { ipv6: outer.ipv6, outer_l4: outer.l4() as u16, inner: begin as u16 }),
            ..header
        };
        (header, packet)
    }

    /// What a naive sender makes of it, packet by packet, identifications counting up in both headers.
    fn naive_split(&self, segment: usize) -> Vec<Vec<u8>> {
        let inner = self.inner.naive_split(segment);
        let part = |(number, inner): (usize, &Vec<u8>)| {
            let mut part = self.clone();
            part.outer.id = self.outer.id.wrapping_add(number as u16);
            part.build(inner)
        };
        inner.iter().enumerate().map(part).collect()
    }
}

prop_compose! {
    fn nested(max_payload: usize)(
        outer in spec(1),
        checksum in any::<bool>(),
        // VXLAN and Ethernet; with a tag; Geneve with options; nothing.
        between in prop_oneof![Just(22), Just(26), Just(38), Just(0)]
            .prop_flat_map(|len| prop::collection::vec(any::<u8>(), len)),
        inner in spec(max_payload),
    ) -> Nested {
        Nested { outer: Spec { tcp: false, ..outer }, checksum, between, inner }
    }
}

proptest! {
    #[test]
    fn a_packet_in_a_tunnel_becomes_what_a_naive_sender_sends(nested in nested(6000), segment in 1..1400u16) {
        prop_assume!(!nested.inner.payload.is_empty());
        let (header, packet) = nested.super_packet(segment);
        prop_assert_eq!(split(header, &packet).unwrap(), nested.naive_split(segment.into()));
    }

    #[test]
    fn whatever_the_header_of_a_tunnel_claims_nothing_panics_or_grows(
        nested in nested(1500),
        flip in any::<u8>(),
        shift in (any::<u16>(), any::<u16>(), any::<u16>()),
        which in 0..8u8,
        garbled in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (mut header, mut packet) = nested.super_packet(50);
        for (at, byte) in garbled {
            *at.get_mut(&mut packet) = byte;
        }
        let mut tunnel = header.tunnel.unwrap();
        if which & 1 != 0 {
            tunnel.outer_l4 = shift.0;
        }
        if which & 2 != 0 {
            tunnel.inner = shift.1;
        }
        if which & 4 != 0 {
            header.checksum_start = shift.2;
        }
        header = VnetHeader { flags: header.flags ^ (flip & 9), tunnel: Some(tunnel), ..header };
        if let Ok(parts) = split(header, &packet) {
            prop_assert!(parts.len() <= packet.len().div_ceil(50).max(1));
            prop_assert!(parts.iter().all(|part| part.len() <= packet.len()));
        }
    }
}

fn vxlan() -> Nested {
    let plain = |flow, tcp, payload| Spec {
        ipv6: false,
        tcp,
        flow,
        class: 0,
        hops: 64,
        id: 7,
        dont_fragment: true,
        sequence: 1000,
        flags: 0x18,
        options: 3,
        payload: vec![9; payload],
    };
    let inner = plain(2, true, 250);
    Nested { outer: plain(1, false, 0), checksum: true, between: vec![8; 22], inner }
}

#[test]
fn the_header_is_read_as_the_kernel_writes_it() {
    let (header, _) = vxlan().super_packet(100);
    // TCPv4 in IPv4 with both checksums to be made; hdr_len, gso_size, csum_start, csum_offset; what hashes need; where
    // the outer UDP and the inner IP begin. Of tunnels, in little endian on every machine.
    let bytes = [9, 0x21, 0, 0, 100, 0, 70, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 50, 0];
    assert_eq!(VnetHeader::decode(&bytes), Some(header));
}

#[test]
fn lies_about_a_tunnel_are_refused() {
    let (honest, packet) = vxlan().super_packet(100);
    assert_eq!(split(honest, &packet).unwrap().len(), 3);
    let tunnel = honest.tunnel.unwrap();
    let other = |tunnel| VnetHeader { tunnel, ..honest };
    let lies = [
        other(None),
        other(Some(Tunnel { ipv6: true, ..tunnel })),
        other(Some(Tunnel { outer_l4: 24, ..tunnel })),
        other(Some(Tunnel { inner: 20, ..tunnel })),
        other(Some(Tunnel { inner: 51, ..tunnel })),
        other(Some(Tunnel { inner: 52, ..tunnel })),
        other(Some(Tunnel { inner: u16::MAX, ..tunnel })),
        VnetHeader { checksum_start: 20, ..honest },
        VnetHeader { flags: NEEDS_CHECKSUM, ..honest },
        VnetHeader { kind: Kind::Tcp6, ..honest },
        VnetHeader { segment: 0, ..honest },
    ];
    for lie in lies {
        assert_eq!(split(lie, &packet), Err(Malformed), "{lie:?}");
    }
    let (unsummed, packet) = Nested { checksum: false, ..vxlan() }.super_packet(100);
    assert_eq!(split(unsummed, &packet).unwrap().len(), 3);
    let lie = VnetHeader { flags: unsummed.flags | TUNNEL_CHECKSUM, ..unsummed };
    assert_eq!(split(lie, &packet), Err(Malformed));
    // The outer packet is not of UDP.
    let mut packet = packet;
    packet[9] = 6;
    assert_eq!(split(unsummed, &packet), Err(Malformed));
}
