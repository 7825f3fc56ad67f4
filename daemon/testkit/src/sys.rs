//! The system calls of this crate that only `unsafe` reaches: fork, the environment, and what a child does
//! between fork and exec. The rings of packet sockets are in [`crate::capture`].
#![expect(unsafe_code, reason = "fork, set_var and pre_exec have no safe form")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::ensure;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{ForkResult, fork};

/// Refuses to go on when this process has more than one thread.
pub fn ensure_single_threaded() -> anyhow::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    ensure!(threads == 1, "isolate::enter() comes first in main: {threads} threads already run");
    Ok(())
}

/// Forks this process, which has only one thread.
pub fn fork_single_threaded() -> anyhow::Result<ForkResult> {
    ensure_single_threaded()?;
    // SAFETY: with a single thread no lock can be held by a thread that the child lacks, so the child may
    // do anything.
    Ok(unsafe { fork() }?)
}

/// Sets a variable of this process's environment, which has only one thread.
pub fn set_env(name: &str, value: impl AsRef<OsStr>) -> anyhow::Result<()> {
    ensure_single_threaded()?;
    // SAFETY: no other thread exists that could read the environment meanwhile.
    unsafe { std::env::set_var(name, value) };
    Ok(())
}

/// Makes `command` start in the given network and mount namespaces.
pub fn start_in(command: &mut Command, net: Arc<OwnedFd>, mnt: Arc<OwnedFd>) {
    let enter = move || {
        setns(&*net, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        setns(&*mnt, CloneFlags::CLONE_NEWNS).map_err(io::Error::from)
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
}
