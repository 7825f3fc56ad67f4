//! Micro-benchmarks of super-packets: `cargo bench -p warren-perf --bench offload`. Each is of as many segments as make one
//! run of datagrams, and shown per segment. A segment's encryption takes some 750 ns, so what is here should be little
//! beside that.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_tunnel::offload::vnet::{Kind, NEEDS_CHECKSUM, TUNNEL_CHECKSUM, Tunnel, VnetHeader};
use warren_tunnel::offload::{Coalescer, SPARE, Segments, checksum};

/// Segments in a super-packet, and bytes of payload in each: TCP over IPv4 with timestamps at MTU 1420.
const COUNT: usize = 45;
const SEGMENT: usize = 1368;

/// What stands between outer and inner packet: VXLAN and Ethernet.
const BETWEEN: usize = 8 + 14;

/// Headers: IPv4; UDP; TCP with timestamps.
const IP: usize = 20;
const UDP: usize = 8;
const TCP: usize = 32;

/// Bytes that are summed: a small packet, a full one, a super-packet.
const SUMS: [usize; 3] = [64, 1420, 65_535];

/// IPv4 and TCP, as the kernel hands it over, and what it is to be split into.
fn tcp() -> (VnetHeader, Vec<u8>) {
    let mut packet = ipv4(6, IP + TCP + COUNT * SEGMENT);
    let header = &mut packet[IP..];
    header[12..14].copy_from_slice(&[(TCP as u8 / 4) << 4, 0x10]);
    (vnet(Kind::Tcp4, SEGMENT, None), packet)
}

/// The same, shorter, in VXLAN over IPv4.
fn vxlan() -> (VnetHeader, Vec<u8>) {
    let begin = IP + UDP + BETWEEN;
    let inner = tcp().1;
    let mut packet = ipv4(17, begin + inner.len() - COUNT * begin);
    // Any checksum says that there is to be one.
    packet[IP + 6] = 1;
    packet[begin..].copy_from_slice(&inner[..inner.len() - COUNT * begin]);
    let tunnel = Tunnel { ipv6: false, outer_l4: IP as u16, inner: begin as u16 };
    (vnet(Kind::Tcp4, SEGMENT - begin, Some(tunnel)), packet)
}

/// An IPv4 header (RFC 791) and so many bytes in all, of no particular value.
fn ipv4(protocol: u8, len: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|at| at as u8).collect();
    packet[..IP].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, protocol]);
    packet[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    packet[IP + 4..IP + 8].fill(0);
    packet
}

fn vnet(kind: Kind, segment: usize, tunnel: Option<Tunnel>) -> VnetHeader {
    let begin = tunnel.map_or(0, |tunnel| tunnel.inner);
    VnetHeader {
        flags: NEEDS_CHECKSUM | if tunnel.is_some() { TUNNEL_CHECKSUM } else { 0 },
        kind,
        ecn: false,
        header_len: 0,
        segment: segment as u16,
        checksum_start: begin + IP as u16,
        checksum_offset: 16,
        tunnel,
    }
}

/// Splits what is in `buffer`, and hands each segment to `each`.
fn split_into(header: VnetHeader, buffer: &mut [u8], mut each: impl FnMut(&[u8])) {
    let len = buffer.len() - SPARE;
    let mut segments = Segments::new(header, buffer, len).expect("header and packet agree");
    while let Some((segment, len)) = segments.take() {
        each(&segment[..len]);
    }
}

fn split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split");
    group.throughput(Throughput::Elements(COUNT as u64));
    for (name, (header, packet)) in [("TCP", tcp()), ("TCP in VXLAN", vxlan())] {
        group.bench_function(name, |bencher| {
            // Splitting overwrites the packet, so each is a new one; only its splitting is timed.
            let mut buffer = vec![0; packet.len() + SPARE];
            bencher.iter_custom(|packets| {
                let mut time = Duration::ZERO;
                for _ in 0..packets {
                    buffer[..packet.len()].copy_from_slice(&packet);
                    let start = Instant::now();
                    split_into(header, &mut buffer, |segment| {
                        black_box(segment);
                    });
                    time += start.elapsed();
                }
                time
            });
        });
    }
    group.finish();
}

fn coalesce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Elements(COUNT as u64));
    let (header, mut packet) = tcp();
    packet.resize(packet.len() + SPARE, 0);
    let mut segments = Vec::new();
    split_into(header, &mut packet, |segment| segments.push(segment.to_vec()));
    let slices: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    for (name, tcp) in [("one flow", true), ("not taken by the kernel", false)] {
        let mut coalescer = Coalescer::new(tcp, tcp);
        let mut written = 0;
        coalescer.coalesce(&slices, |_, _| {
            written += 1;
            true
        });
        assert_eq!(written, if tcp { 1 } else { COUNT });
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                coalescer.coalesce(&slices, |parts, _| {
                    black_box(parts);
                    true
                });
            });
        });
    }
    group.finish();
}

fn sum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in SUMS {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{len} B")), |bencher| {
            bencher.iter(|| checksum::finish(checksum::add(0, black_box(&bytes))));
        });
    }
    group.finish();
}

criterion_group!(benches, split, coalesce, sum);
criterion_main!(benches);
