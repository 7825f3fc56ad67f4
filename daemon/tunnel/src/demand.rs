//! Serving tunnels only while somebody wants them: for a container that has to run whether they are needed or not.
//!
//! Where the kernel carries the tunnels, an interface of ours would have the name that the kernel's should get. So the
//! program waits for files beside the sockets, one for each interface, and serves while they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::runtime::{End, Tunnel};
use crate::uapi::{self, SOCKET_DIR};

/// How long to wait before a tunnel that failed is tried again, in milliseconds.
const RETRY: u16 = 500;

/// Serves each interface whose name begins with `prefix`, with `lanes` lanes, whenever it is wanted, until SIGTERM or
/// SIGINT.
///
/// # Errors
/// When nothing can be watched. A tunnel that fails is tried again; the others go on.
pub fn serve(prefix: &str, lanes: usize) -> Result<()> {
    fs::create_dir_all(SOCKET_DIR).with_context(|| format!("creating {SOCKET_DIR}"))?;
    // Before there are threads: none may take a signal away from the descriptors, of which each tunnel has one, too.
    let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    mask.thread_block().context("blocking signals")?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("creating a signal descriptor")?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context("watching the sockets' directory (is fs.inotify.max_user_instances too low?)")?;
    let created = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(SOCKET_DIR, created).with_context(|| format!("watching {SOCKET_DIR}"))?;
    let mut tunnels = Tunnels::new(lanes)?;
    tracing::info!("serving the interfaces {prefix}* that are wanted");
    loop {
        let failed = tunnels.ended();
        let wanted = wanted(prefix)?;
        for interface in wanted.difference(&failed) {
            tunnels.start(interface)?;
        }
        let wait = if failed.is_disjoint(&wanted) { PollTimeout::NONE } else { RETRY.into() };
        let mut fds = [signals.as_fd(), watch.as_fd(), tunnels.ended.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for somebody to want a tunnel"),
        }
        if fds[0].any().unwrap_or(true) {
            tunnels.join();
            return Ok(());
        }
        // The events say less than a look.
        while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// The interfaces of this kind that somebody wants.
///
/// # Errors
/// When that cannot be read.
pub fn wanted(prefix: &str) -> Result<BTreeSet<String>> {
    let mut wanted = uapi::wanted().with_context(|| format!("reading {SOCKET_DIR}"))?;
    wanted.retain(|interface| interface.starts_with(prefix));
    Ok(wanted)
}

/// The tunnels that are served, each by a thread of its own beside those that the tunnel has.
struct Tunnels {
    lanes: usize,
    threads: BTreeMap<String, JoinHandle<Result<End>>>,
    /// Readable when a thread ended, whose name is in `names`.
    ended: Arc<EventFd>,
    tell: mpsc::Sender<String>,
    names: mpsc::Receiver<String>,
}

impl Tunnels {
    fn new(lanes: usize) -> Result<Self> {
        let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("creating an event descriptor")?;
        let (tell, names) = mpsc::channel();
        Ok(Self { lanes, threads: BTreeMap::new(), ended: ended.into(), tell, names })
    }

    /// Serves one more, unless it is served already.
    fn start(&mut self, interface: &str) -> Result<()> {
        if self.threads.contains_key(interface) {
            return Ok(());
        }
        let (name, lanes) = (interface.to_owned(), self.lanes);
        let (tell, ended) = (self.tell.clone(), self.ended.clone());
        let serve = move || {
            let result = Tunnel::create(&name, lanes).and_then(|tunnel| tunnel.serve(|| Ok(())));
            // Both fail only where nobody listens any more.
            let _ = tell.send(name);
            let _ = ended.write(1);
            result
        };
        let thread = std::thread::Builder::new().spawn(serve).context("starting a thread")?;
        self.threads.insert(interface.to_owned(), thread);
        Ok(())
    }

    /// Lets go of the tunnels that have ended; returns those that failed. Whoever deletes the interface of a tunnel
    /// that is wanted gets a new one at once.
    fn ended(&mut self) -> BTreeSet<String> {
        // An error says that it is reset already.
        let _ = self.ended.read();
        let mut failed = BTreeSet::new();
        for interface in self.names.try_iter() {
            let Some(thread) = self.threads.remove(&interface) else { continue };
            let result = thread.join().unwrap_or_else(|_| Err(anyhow!("the tunnel {interface} panicked")));
            if let Err(error) = result {
                // The interface of the backend before is on its way out, perhaps.
                tracing::error!("{error:#}; trying again");
                failed.insert(interface);
            }
        }
        failed
    }

    /// Waits for the end of all, which a signal brings about.
    fn join(self) {
        for (interface, thread) in self.threads {
            match thread.join() {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!("{error:#}"),
                Err(_) => tracing::error!("the tunnel {interface} panicked"),
            }
        }
    }
}
