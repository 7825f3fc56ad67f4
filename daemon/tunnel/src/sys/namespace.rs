//! Network namespaces: an interface may be moved to another one, and renamed there, while its program stays.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use nix::sched::{CloneFlags, setns};

/// Which namespace it is: device and inode of its file (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64, u64);

impl Identity {
    /// That of an open namespace.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of(namespace: &File) -> io::Result<Self> {
        let metadata = namespace.metadata()?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }
}

/// Runs `work` in another namespace, on a thread of its own: the caller's stays where it is.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN here and in the other one; those of `work`.
pub fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let enter = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked in another namespace")))
    })
}
