//! The allocator of the unit tests: the system's, and each thread counts what it takes.
#![expect(unsafe_code, reason = "an allocator has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static BLOCKS: Cell<u64> = const { Cell::new(0) };
}

/// How many blocks `work` allocates on this thread, freed or not. One that is made larger counts as another.
pub fn allocations(work: impl FnOnce()) -> u64 {
    let before = BLOCKS.get();
    work();
    BLOCKS.get() - before
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    BLOCKS.set(BLOCKS.get() + 1);
}

// SAFETY: everything is passed on to the system's allocator as it comes, so that whoever keeps to the trait's contract
// here keeps to it there. Counting neither allocates nor panics: the cell is initialised at compile time and never dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
