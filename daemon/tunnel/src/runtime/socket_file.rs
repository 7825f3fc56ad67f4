//! The configuration socket as a file: making it, watching it, removing it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};

use crate::uapi::SOCKET_DIR;
use crate::uapi::client::connect;

/// How long a program that has our socket may take to accept.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How many clients may wait to be accepted: as many as the standard library asks for.
const BACKLOG: i32 = 128;

/// A listening configuration socket, and the file that leads to it. Removing the file is the protocol's
/// way to end the program.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another socket may come to have our name.
    identity: (u64, u64),
    listener: UnixListener,
    watch: Inotify,
}

impl SocketFile {
    /// Binds `path`, which is in [`SOCKET_DIR`]. The socket of a program that has died is replaced.
    ///
    /// # Errors
    /// When another program answers there, or the directory cannot be written.
    pub fn bind(path: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(SOCKET_DIR)
            .with_context(|| format!("creating {SOCKET_DIR}"))?;
        match connect(path, ANSWER_WITHIN).map_err(|error| error.kind()) {
            // A program that hangs has its backlog full, and lives as well.
            Ok(_) | Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                bail!("already running: a WireGuard program has {}", path.display())
            }
            Err(io::ErrorKind::ConnectionRefused) => {
                fs::remove_file(path)
                    .with_context(|| format!("removing the stale socket {}", path.display()))?;
            }
            // Nothing there, or something that binding will complain about.
            Err(_) => {}
        }
        let listener = listen(path).with_context(|| format!("binding {}", path.display()))?;
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .context("watching the socket's directory (is fs.inotify.max_user_instances too low?)")?;
        let removals =
            AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE_SELF;
        watch.add_watch(SOCKET_DIR, removals).with_context(|| format!("watching {SOCKET_DIR}"))?;
        let identity = identity(path).with_context(|| format!("looking at {}", path.display()))?;
        Ok(Self { path: path.to_owned(), identity, listener, watch })
    }

    /// Makes the kernel name this process to whoever asks who is behind the socket (SO_PEERCRED, unix(7)):
    /// it remembers who called listen last, and that was the parent, before it went into the background.
    pub fn claim(&self) -> Result<()> {
        socket::listen(&self.listener, Backlog::new(BACKLOG)?).context("listening on the socket")
    }

    /// The listening socket, non-blocking.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Readable when something in the directory was removed; then ask [`is_removed`](Self::is_removed).
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Whether the file is gone, or is another's by now.
    pub fn is_removed(&self) -> bool {
        // The events themselves say less than a look: they may be about another, or have overflowed.
        while self.watch.read_events().is_ok_and(|events| !events.is_empty()) {}
        identity(&self.path).ok() != Some(self.identity)
    }

    /// Removes the file, if it is still ours.
    pub fn remove(&self) {
        if identity(&self.path).ok() == Some(self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// A listening socket whose file only root may open, since it hands out the private key. Not by chmod afterwards, which
/// would leave a moment; nor by umask, which is the whole process's, and other threads make files, too. The kernel gives
/// the file the mode that the socket has when it is bound (`unix_bind_bsd` in net/unix/af_unix.c).
fn listen(path: &Path) -> Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
