//! Keeping the private key out of files nobody meant to write.

use anyhow::Context as _;

/// Forbids core dumps and debuggers of other users (`prctl(2)`, PR_SET_DUMPABLE): both would hold the key.
pub fn forbid_core_dumps() -> anyhow::Result<()> {
    nix::sys::prctl::set_dumpable(false).context("core dumps could not be forbidden (PR_SET_DUMPABLE)")
}
