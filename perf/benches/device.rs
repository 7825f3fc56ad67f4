//! Micro-benchmarks of the pure pieces of the data path: `cargo bench -p warren-perf`. Each is of a whole batch, and
//! shown per packet or byte; criterion compares with the last run and draws into target/criterion. Segmentation,
//! coalescing and checksums are in `offload.rs`, the AEAD's engines by themselves in `aead.rs`.

#[path = "joined/mod.rs"]
mod joined;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use joined::{BATCH, Joined};

/// Prefixes that the device knows besides its peer's: none, and as many as a large cluster has.
const PREFIXES: [u32; 2] = [0, 100_000];

/// A packet of a full-sized TCP segment, and a small one.
const SIZES: [usize; 2] = [1420, 64];

fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("look up, nobody's address");
    group.throughput(Throughput::Elements(BATCH as u64));
    for prefixes in PREFIXES {
        let mut joined = Joined::new(prefixes);
        group.bench_function(BenchmarkId::new("prefixes", prefixes), |bencher| {
            bencher.iter(|| joined.look_up());
        });
    }
    group.finish();
}

fn encapsulate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encapsulate");
    for prefixes in PREFIXES {
        let mut joined = Joined::new(prefixes);
        for size in SIZES {
            group.throughput(Throughput::Bytes((BATCH * size) as u64));
            let name = BenchmarkId::new(format!("{size} B"), format!("{prefixes} prefixes"));
            group.bench_function(name, |bencher| bencher.iter(|| joined.encapsulate(size)));
        }
    }
    group.finish();
}

fn decapsulate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decapsulate");
    let mut joined = Joined::new(0);
    for size in SIZES {
        group.throughput(Throughput::Bytes((BATCH * size) as u64));
        group.bench_function(format!("{size} B"), |bencher| {
            // A datagram is taken once only, so each batch is a new one; only its decryption is timed.
            bencher.iter_custom(|batches| {
                let mut time = Duration::ZERO;
                for _ in 0..batches {
                    joined.encapsulate(size);
                    let start = Instant::now();
                    joined.decapsulate();
                    time += start.elapsed();
                }
                time
            });
        });
    }
    group.finish();
}

criterion_group!(benches, look_up, encapsulate, decapsulate);
criterion_main!(benches);
