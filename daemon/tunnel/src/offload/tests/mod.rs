//! Splitting and coalescing against naive implementations, against each other, and against nonsense.

mod coalesce;
mod split;
mod tunnel;

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::vnet::{Kind, LEN, NEEDS_CHECKSUM, VnetHeader};
use super::*;

/// A packet's headers before they are bytes.
#[derive(Clone, Debug)]
struct Spec {
    ipv6: bool,
    tcp: bool,
    /// Tells flows apart.
    flow: u8,
    class: u8,
    hops: u8,
    id: u16,
    dont_fragment: bool,
    sequence: u32,
    flags: u8,
    /// TCP options, in words of 4 bytes.
    options: usize,
    payload: Vec<u8>,
}

impl Spec {
    fn l4(&self) -> usize {
        if self.ipv6 { 40 } else { 20 }
    }

    fn headers(&self) -> usize {
        self.l4() + if self.tcp { 20 + 4 * self.options } else { 8 }
    }

    /// The packet as a sender without any offload would make it.
    fn build(&self) -> Vec<u8> {
        let mut packet = self.build_without_checksum();
        let at = self.l4() + if self.tcp { 16 } else { 6 };
        let checksum = match naive_checksum(&self.pseudo(packet.len() - self.l4()), &packet[self.l4()..]) {
            0 if !self.tcp => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn build_without_checksum(&self) -> Vec<u8> {
        let l4_len = self.headers() - self.l4() + self.payload.len();
        let mut packet = Vec::new();
        let protocol = if self.tcp { 6 } else { 17 };
        if self.ipv6 {
            packet.extend((0x6000_0000 | u32::from(self.class) << 20 | 0x12345).to_be_bytes());
            packet.extend((l4_len as u16).to_be_bytes());
            packet.extend([protocol, self.hops]);
            packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, self.flow.into()).octets());
            packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 1).octets());
        } else {
            packet.extend([0x45, self.class]);
            packet.extend((20 + l4_len as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hops, protocol, 0, 0]);
            packet.extend(Ipv4Addr::new(10, 0, 0, self.flow).octets());
            packet.extend(Ipv4Addr::new(10, 0, 1, 1).octets());
            let checksum = naive_checksum(&[], &packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet.extend([0x12, self.flow, 0x14, 0x51]);
        if self.tcp {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(77u32.to_be_bytes());
            packet.extend([(5 + self.options as u8) << 4, self.flags, 1, 2, 0, 0, 0, 0]);
            packet.extend((0..4 * self.options).map(|byte| byte as u8));
        } else {
            packet.extend((l4_len as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(&self.payload);
        packet
    }

    fn pseudo(&self, l4_len: usize) -> Vec<u8> {
        let packet = self.build_without_checksum();
        let addresses = if self.ipv6 { &packet[8..40] } else { &packet[12..20] };
        let protocol = if self.tcp { 6 } else { 17 };
        [addresses, &(l4_len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
    }

    /// The super-packet as the kernel hands it over: the checksum covers the pseudo-header alone.
    fn super_packet(&self, segment: u16) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.build_without_checksum();
        let offset = if self.tcp { 16 } else { 6 };
        let at = self.l4() + offset;
        let partial = !naive_checksum(&self.pseudo(packet.len() - self.l4()), &[]);
        packet[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let kind = match (self.tcp, self.ipv6) {
            (false, _) => Kind::Udp,
            (true, false) => Kind::Tcp4,
            (true, true) => Kind::Tcp6,
        };
        let header = VnetHeader {
            flags: NEEDS_CHECKSUM,
            kind,
            ecn: self.flags & 0x80 != 0,
            // A lie, as some kernels tell it: all that is in the first fragment.
            header_len: packet.len() as u16,
            segment,
            checksum_start: self.l4() as u16,
            checksum_offset: offset as u16,
            tunnel: None,
        };
        (header, packet)
    }

    /// What a naive sender makes of it, packet by packet.
    fn naive_split(&self, segment: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(segment);
        self.payload
            .chunks(segment)
            .enumerate()
            .map(|(number, payload)| {
                let mut part = self.clone();
                part.payload = payload.to_vec();
                part.id = self.id.wrapping_add(number as u16);
                part.sequence = self.sequence.wrapping_add((number * segment) as u32);
                if number + 1 < count {
                    part.flags &= !0x09;
                }
                if number > 0 {
                    part.flags &= !0x80;
                }
                part.build()
            })
            .collect()
    }
}

/// RFC 1071 as it is written.
fn naive_checksum(pseudo: &[u8], bytes: &[u8]) -> u16 {
    let mut padded = pseudo.to_vec();
    padded.extend(bytes);
    if padded.len() % 2 == 1 {
        padded.push(0);
    }
    let mut sum = 0u32;
    for word in padded.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word[1]);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Splits, with every segment's spare bytes overwritten, as their user may.
fn split(header: VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + SPARE, 0xaa);
    let mut segments = Segments::new(header, &mut buffer, packet.len())?;
    let mut parts = Vec::new();
    while let Some((buffer, len)) = segments.take() {
        parts.push(buffer[..len].to_vec());
        buffer[..len + SPARE].fill(0xee);
    }
    Ok(parts)
}

/// Coalesces, and returns what would be written to the TUN.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut written = Vec::new();
    Coalescer::new(true, true).coalesce(&slices, |parts, _| {
        assert!(parts.len() <= MAX_PARTS);
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (header, packet) = bytes.split_first_chunk::<LEN>().expect("a vnet header");
        written.push((VnetHeader::decode(header).expect("a known kind"), packet.to_vec()));
        true
    });
    written
}

prop_compose! {
    /// Any packet of any flow.
    fn spec(max_payload: usize)(
        (ipv6, tcp, dont_fragment) in any::<(bool, bool, bool)>(),
        flow in 1..4u8,
        class in prop_oneof![4 => Just(0), 1 => any::<u8>()],
        hops in prop_oneof![4 => Just(64), 1 => 1..255u8],
        id in any::<u16>(),
        sequence in any::<u32>(),
        flags in prop_oneof![8 => Just(0x10u8), 1 => Just(0x18), 1 => any::<u8>()],
        options in prop_oneof![Just(0usize), Just(3), 0..=10usize],
        payload in prop::collection::vec(any::<u8>(), 0..max_payload),
    ) -> Spec {
        Spec { ipv6, tcp, flow, class, hops, id, dont_fragment, sequence, flags, options, payload }
    }
}

proptest! {
    #[test]
    fn the_checksum_is_the_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..3000), start in any::<u32>()) {
        let expected = naive_checksum(&start.to_be_bytes(), &bytes).to_be_bytes();
        prop_assert_eq!(checksum::finish(checksum::add(checksum::add(0, &start.to_be_bytes()), &bytes)), expected);
    }

    #[test]
    fn a_vnet_header_survives_its_bytes(bytes in any::<[u8; 10]>()) {
        let mut whole = [0; LEN];
        whole[..10].copy_from_slice(&bytes);
        if let Some(header @ VnetHeader { tunnel: None, .. }) = VnetHeader::decode(&whole) {
            prop_assert_eq!(header.encode(), whole);
        }
    }
}
