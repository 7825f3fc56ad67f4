//! Serving a tunnel only while somebody wants one: for a container that has to run whether it is needed or not.
//!
//! Where the kernel carries the tunnels, an interface of ours would have the name that the kernel's should get. So the
//! program waits for a file beside the socket, and serves while it is there.

use std::fs;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::runtime::{End, Tunnel};
use crate::uapi::{SOCKET_DIR, wanted_path};

/// How long to wait before a tunnel that could not be created is tried again, in milliseconds.
const RETRY: u16 = 500;

/// Serves `interface` with `lanes` lanes whenever it is wanted, until SIGTERM or SIGINT.
///
/// # Errors
/// When nothing can be watched, or a tunnel fails that was up. One that cannot be created is tried again.
pub fn serve(interface: &str, lanes: usize) -> Result<()> {
    fs::create_dir_all(SOCKET_DIR).with_context(|| format!("creating {SOCKET_DIR}"))?;
    let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    mask.thread_block().context("blocking signals")?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("creating a signal descriptor")?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context("watching the socket's directory (is fs.inotify.max_user_instances too low?)")?;
    let created = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(SOCKET_DIR, created).with_context(|| format!("watching {SOCKET_DIR}"))?;
    loop {
        let mut wait = PollTimeout::NONE;
        if is_wanted(interface) {
            match Tunnel::create(interface, lanes) {
                Ok(tunnel) => match tunnel.serve(|| Ok(()))? {
                    End::Signal => return Ok(()),
                    // Whoever deletes the interface of a tunnel that is wanted gets a new one.
                    End::SocketRemoved | End::InterfaceDeleted => continue,
                },
                // The interface of the backend before is on its way out, perhaps.
                Err(error) => {
                    tracing::error!("{error:#}; trying again");
                    wait = RETRY.into();
                }
            }
        } else {
            tracing::info!(interface, "waiting until it is wanted");
        }
        let mut fds =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for somebody to want a tunnel"),
        }
        if fds[0].any().unwrap_or(true) {
            return Ok(());
        }
        // The events say less than a look.
        while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// Whether somebody wants the tunnel.
pub fn is_wanted(interface: &str) -> bool {
    wanted_path(interface).exists()
}
