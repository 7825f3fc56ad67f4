//! Ctrl-C and SIGTERM.
//!
//! There is nothing to clean up: when this process ends, the kernel kills all others of its pid namespace
//! and its namespaces go. So the end may come from a thread, at any moment.

use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// What an interruption says and returns: that the demo failed, until it is over.
static END: Mutex<(&str, i32)> = Mutex::new(("\ndemo: FAILED, interrupted", 130));

fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}

/// Holds interruptions back until [`watch`] can answer them; first in `main`, so that none comes too early.
/// Threads started later inherit that these signals are not for them.
pub fn hold() -> Result<()> {
    signals().thread_block().context("blocking signals")
}

/// Ends the program on SIGINT, SIGTERM and SIGHUP.
pub fn watch() -> Result<()> {
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            // Waiting fails only for an invalid set.
            while signals().wait().is_err() {}
            let (words, status) = *END.lock().expect("nobody panics with it");
            println!("{words}");
            std::process::exit(status)
        })
        .context("starting a thread")?;
    Ok(())
}

/// From now on an interruption is the expected end, with this exit status.
pub fn expect(status: i32) {
    *END.lock().expect("nobody panics with it") = ("\nthe lab is gone", status);
}
