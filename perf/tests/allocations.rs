//! A packet costs no allocation: counted, not timed, so that it says the same on every machine.

#[path = "../benches/joined/mod.rs"]
mod joined;

use joined::{BATCH, Joined};

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
}
