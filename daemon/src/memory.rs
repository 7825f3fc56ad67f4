//! What of the memory that was used goes back.
#![expect(unsafe_code, reason = "mallopt has no wrapper in nix")]

/// So many heaps. The C library gives each thread its own, up to eight for each processor, and a heap keeps what was
/// once needed of it: with thousands of nodes a look needs megabytes, on whatever thread it reads.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 2;

/// Has threads share heaps (`mallopt(3)`, M_ARENA_MAX). To be called before there are threads. No other C library has
/// heaps to share.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and locks what it changes. Whether it succeeds matters to nobody.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}
