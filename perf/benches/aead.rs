//! What one packet costs to encrypt and to decrypt, by each engine of the AEAD: `cargo bench -p warren-perf --bench aead`. An
//! engine that cannot be used here is named and left out.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use warren_tunnel::aead::{Choice, Engine, Key};

/// A packet of a full-sized TCP segment in an MTU of 1420, padded; a small one; the smallest that is padded.
const SIZES: [usize; 3] = [1424, 80, 16];

fn engines() -> Vec<Engine> {
    let usable =
        |choice| Engine::new(choice).inspect_err(|error| eprintln!("{choice:?}: not run: {error}")).ok();
    [Choice::Ring, Choice::IpsecMb].into_iter().filter_map(usable).collect()
}

fn each(
    criterion: &mut Criterion,
    what: &str,
    bench: fn(&mut BenchmarkGroup<'_, WallTime>, BenchmarkId, Key, usize),
) {
    let mut group = criterion.benchmark_group(what);
    for engine in engines() {
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            let name = BenchmarkId::new(engine.name(), format!("{size} B"));
            bench(&mut group, name, Key::with(engine, &[7; 32]), size);
        }
    }
    group.finish();
}

fn seal(criterion: &mut Criterion) {
    each(criterion, "seal", |group, name, key, size| {
        let (mut text, mut counter) = (vec![0; size], 0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                counter += 1;
                key.seal(counter, &mut text)
            });
        });
    });
}

/// A text is only once what the tag belongs to, so each time it is copied first; that is less than a fiftieth.
fn open(criterion: &mut Criterion) {
    each(criterion, "open", |group, name, key, size| {
        let mut sealed = vec![0; size];
        let tag = key.seal(1, &mut sealed).expect("it is short");
        let mut text = sealed.clone();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                text.copy_from_slice(&sealed);
                key.open(1, &mut text, &tag).expect("it is authentic");
            });
        });
    });
}

criterion_group!(benches, seal, open);
criterion_main!(benches);
