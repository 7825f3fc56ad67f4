//! Becoming a daemon.
#![expect(unsafe_code, reason = "fork is unsafe in a process with threads")]

use std::io;

use nix::unistd::{ForkResult, Pid, fork};

/// Forks; returns the child's pid in the parent and `None` in the child.
///
/// # Errors
/// Those of fork(2), and when this process has more than one thread: in the child only the caller would
/// survive, with whatever locks the others held.
pub fn fork_single_threaded() -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("cannot fork: there are threads already"));
    }
    // SAFETY: there is just this thread, so the child is a full copy and may do whatever the parent may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}
