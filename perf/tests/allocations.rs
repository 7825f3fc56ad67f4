//! A packet costs no allocation: counted, not timed, so that it says the same on every machine.

#[path = "../benches/joined/mod.rs"]
mod joined;

use joined::{BATCH, Joined};
use warren_tunnel::offload::vnet::{Kind, LEN, NEEDS_CHECKSUM, VnetHeader};
use warren_tunnel::offload::{Coalescer, SPARE, Segments};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// How many blocks `work` allocates, freed or not.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = dhat::HeapStats::get().total_blocks;
    work();
    dhat::HeapStats::get().total_blocks - before
}

/// One test, because all that runs in the process is counted.
#[test]
fn packets_allocate_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1, "nothing is counted at all");

    let mut joined = Joined::new(1000);
    for size in [1420, 64] {
        // The first batch may still make room for what all later ones use.
        joined.encapsulate(size);
        joined.decapsulate();
        let batches = 100;
        let counted = allocations(|| {
            for _ in 0..batches {
                joined.encapsulate(size);
                joined.decapsulate();
                joined.look_up();
            }
        });
        assert_eq!(counted, 0, "allocations for {} packets of {size} bytes each way", batches * BATCH);
    }

    for ipv6 in [false, true] {
        for protocol in [TCP, UDP] {
            super_packets(ipv6, protocol);
        }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Payload of a segment, and how many segments a super-packet has, of which the last is shorter.
const SEGMENT: usize = 1360;
const SEGMENTS: usize = 40;

/// Splits super-packets, and coalesces what came of it.
fn super_packets(ipv6: bool, protocol: u8) {
    let (header, packet) = super_packet(ipv6, protocol);
    let mut buffer = packet.clone();
    buffer.resize(packet.len() + SPARE, 0);
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut segments = Segments::new(header, &mut buffer, packet.len()).expect("it is a super-packet");
    while let Some((segment, len)) = segments.take() {
        pieces.push(segment[..len].to_vec());
    }
    assert_eq!(pieces.len(), SEGMENTS);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let mut coalescer = Coalescer::new(true, true);
    let mut round = || {
        buffer[..packet.len()].copy_from_slice(&packet);
        let mut segments = Segments::new(header, &mut buffer, packet.len()).expect("it was one before");
        let mut count = 0;
        while segments.take().is_some() {
            count += 1;
        }
        let (mut written, mut bytes) = (0, 0);
        coalescer.coalesce(&pieces, |parts, _| {
            written += 1;
            bytes += parts.iter().map(|part| part.len()).sum::<usize>();
            true
        });
        assert_eq!((count, written, bytes), (SEGMENTS, 1, LEN + packet.len()));
    };
    round();
    let counted = allocations(|| (0..100).for_each(|_| round()));
    assert_eq!(counted, 0, "allocations for 100 super-packets of protocol {protocol}, IPv6: {ipv6}");
}

/// A super-packet as the kernel gives it: its checksum is that of the pseudo-header.
fn super_packet(ipv6: bool, protocol: u8) -> (VnetHeader, Vec<u8>) {
    let l4 = if ipv6 { 40 } else { 20 };
    let (headers, offset) = if protocol == TCP { (20, 16) } else { (8, 6) };
    let payload = SEGMENT * SEGMENTS - 7;
    let len = l4 + headers + payload;
    let mut packet = vec![0; len];
    if ipv6 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((headers + payload) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&[protocol, 64]);
        packet[8..40].fill(0xfd);
    } else {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        // DF, so that the identification does not matter.
        packet[6] = 0x40;
        packet[8..10].copy_from_slice(&[64, protocol]);
        packet[12..20].fill(10);
    }
    packet[l4..l4 + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    if protocol == TCP {
        packet[l4 + 12..l4 + 16].copy_from_slice(&[5 << 4, 0x10, 1, 0]);
    } else {
        packet[l4 + 4..l4 + 6].copy_from_slice(&((headers + payload) as u16).to_be_bytes());
    }
    for (at, byte) in packet[l4 + headers..].iter_mut().enumerate() {
        *byte = at as u8;
    }
    let kind = match (protocol, ipv6) {
        (TCP, false) => Kind::Tcp4,
        (TCP, true) => Kind::Tcp6,
        _ => Kind::Udp,
    };
    let header = VnetHeader {
        flags: NEEDS_CHECKSUM,
        kind,
        ecn: false,
        header_len: (l4 + headers) as u16,
        segment: SEGMENT as u16,
        checksum_start: l4 as u16,
        checksum_offset: offset,
        tunnel: None,
    };
    (header, packet)
}
