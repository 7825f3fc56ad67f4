//! A running tunnel: the device joined to a TUN interface, UDP sockets and a configuration socket.
//!
//! ```text
//!   wg(8) ──▶ configuration socket ──▶ control thread ──apply──▶ Device ◀── lane 0 ◀──▶ TUN queue 0, UDP port
//!                                        │    ▲                       ◀── lane 1 ◀──▶ TUN queue 1, UDP port + 1
//!                    signals, removal of the  │ a lane ended          …
//!                    socket or interface ─────┘
//! ```
//!
//! [`Tunnel::create`] makes everything that can fail and starts no thread, so that the caller may still
//! fork; [`Tunnel::serve`] runs until the tunnel is to end, and cleans up.

mod connections;
mod control;
mod counters;
mod interface;
mod lane;
mod receiver;
mod recycle;
mod sender;
mod socket_file;
mod udp;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use connections::Connections;
use counters::Io;
use lane::{Lane, Shared};
use socket_file::SocketFile;
use udp::Sockets;

use crate::device::{Device, HANDSHAKES_PER_SECOND};
use crate::sys::tun::Queue;
use crate::uapi::socket_path;

/// MTU of a new interface, in bytes: what fits a 1500-byte path over IPv6, rounded down by everybody to
/// this; `wg-quick` and operators change it on the interface.
pub const DEFAULT_MTU: u16 = 1420;

/// Most lanes of a tunnel: the kernel's limit of TUN queues (`tun.c`, MAX_TAP_QUEUES).
pub const MAX_LANES: usize = 256;

/// Between two log lines about what was dropped.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A tunnel that exists, and is served by nobody yet.
pub struct Tunnel {
    name: String,
    socket: SocketFile,
    queues: Vec<Queue>,
    /// The interface lives as long as any descriptor of its queues. This one goes last: whoever sees that the interface is
    /// gone finds the port free, too.
    interface: Option<OwnedFd>,
    shared: Arc<Shared>,
    signals: SignalFd,
}

/// Why a tunnel ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM or SIGINT.
    Signal,
    /// The configuration socket was removed.
    SocketRemoved,
    /// The interface was deleted.
    InterfaceDeleted,
}

impl Tunnel {
    /// Creates interface, sockets and configuration socket. From then on SIGTERM and SIGINT wait for
    /// [`serve`](Self::serve). Nothing is left behind on failure.
    ///
    /// # Errors
    /// When the interface exists, another program serves its socket, or permissions are missing.
    pub fn create(name: &str, lanes: usize) -> Result<Self> {
        check_name(name)?;
        if !(1..=MAX_LANES).contains(&lanes) {
            bail!("a tunnel has 1 to {MAX_LANES} lanes");
        }
        let queues = Queue::create(name, lanes, DEFAULT_MTU).map_err(|error| explain_tun(name, error))?;
        tracing::debug!(offloads = ?queues.first().map(Queue::offloads), "created the interface");
        // Before all that has to go before it: a killed program's descriptors are closed from the last to the first.
        let interface = queues.first().map(Queue::hold).transpose().context("holding the interface")?;
        let sockets = Sockets::bind(lanes, 0, 0).context("binding UDP sockets")?;
        if let Some(bytes) = sockets.small_buffer() {
            tracing::warn!(
                bytes,
                "small socket buffers, which lose packets in bursts: raise net.core.rmem_max and net.core.wmem_max"
            );
        }
        // At most MAX_LANES.
        let device = Device::new(DEFAULT_MTU.into(), lanes as u16, HANDSHAKES_PER_SECOND, Instant::now());
        let shared = Arc::new(Shared::new(device, sockets, lanes).context("creating event descriptors")?);
        if let [first, _, ..] = &queues[..]
            && let Err(error) = first.steer()
        {
            tracing::info!(%error, "the kernel chooses queues, and packets of a flow that it moves may change places");
            shared.counters.count(Io::SteeringRefused, 1);
        }
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block().context("blocking signals")?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("creating a signal descriptor")?;
        // Last, because its file would have to be removed again.
        let socket = SocketFile::bind(&socket_path(name))?;
        Ok(Self { name: name.to_owned(), socket, queues, interface, shared, signals })
    }

    /// Starts the lanes, calls `ready`, and serves until the tunnel is to end; then removes all traces.
    ///
    /// # Errors
    /// When threads cannot be started or one fails.
    pub fn serve(self, ready: impl FnOnce() -> Result<()>) -> Result<End> {
        let Self { name, socket, queues, interface, shared, signals } = self;
        tracing::info!(interface = name, lanes = queues.len(), port = shared.sockets().port(), "started");
        let mut threads = Vec::with_capacity(queues.len());
        let result = socket
            .claim()
            .and_then(|()| start(&shared, queues, &mut threads))
            .and_then(|()| ready())
            .and_then(|()| control_loop(&socket, &shared, &signals));
        socket.remove();
        shared.stop();
        let lanes = join(threads);
        drop(shared);
        drop(interface);
        let end = match result? {
            Some(end) => {
                lanes?;
                end
            }
            // A lane has ended by itself: because the interface is gone, or in error.
            None => lanes?.context("a lane ended for no reason")?,
        };
        tracing::info!(interface = name, ?end, "ended");
        Ok(end)
    }
}

/// The kernel's rules for names, and none of the characters that are special in the socket's path or in a
/// TUN's name, where `%d` counts up.
fn check_name(name: &str) -> Result<()> {
    let ok = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if ok { Ok(()) } else { bail!("{name:?} is no name for an interface: 1 to 15 printable characters") }
}

fn explain_tun(name: &str, error: io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EBUSY) => "already running, or there is another interface of this name",
        Some(libc::EPERM | libc::EACCES) => {
            "this takes CAP_NET_ADMIN (run it as root), and in a container a runtime that lets it open /dev/net/tun"
        }
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => "there is no /dev/net/tun: load the module tun",
        _ => "the kernel refused",
    };
    anyhow!(error).context(format!("cannot create the interface {name} ({hint})"))
}

/// Starts one thread per queue.
fn start(
    shared: &Arc<Shared>,
    queues: Vec<Queue>,
    threads: &mut Vec<JoinHandle<io::Result<()>>>,
) -> Result<()> {
    for (number, queue) in queues.into_iter().enumerate() {
        let shared = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("lane {number}"))
            .spawn(move || Lane::run(number, shared, queue))
            .context("starting a thread")?;
        threads.push(thread);
    }
    Ok(())
}

/// Waits for all lanes. Their end is well if the interface was deleted or nothing was wrong.
fn join(threads: Vec<JoinHandle<io::Result<()>>>) -> Result<Option<End>> {
    let mut end = None;
    for thread in threads {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EBADFD) => end = Some(End::InterfaceDeleted),
            Ok(Err(error)) => return Err(anyhow!(error).context("a lane failed")),
            Err(_) => bail!("a lane panicked"),
        }
    }
    Ok(end)
}

/// Serves clients until there is a reason to end; `None` if that is a lane which ended.
fn control_loop(socket: &SocketFile, shared: &Arc<Shared>, signals: &SignalFd) -> Result<Option<End>> {
    let mut clients = Connections::default();
    let mut report = Report::new();
    loop {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.ended().as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.watch(), PollFlags::POLLIN),
            PollFd::new(socket.listener().as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(clients.iter().map(|client| PollFd::new(client.as_fd(), client.interest())));
        match poll(&mut fds, report.timeout()) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("waiting for requests"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        let [signal, lane_ended, watch, listener, ref client_ready @ ..] = ready[..] else {
            bail!("poll lost descriptors");
        };
        if lane_ended {
            return Ok(None);
        }
        if signal {
            return Ok(Some(End::Signal));
        }
        if watch && socket.is_removed() {
            return Ok(Some(End::SocketRemoved));
        }
        clients.serve(client_ready, |request| control::answer(shared, request));
        if listener {
            clients.accept(socket.listener());
        }
        report.tell(shared);
    }
}

/// Logs what was dropped, from time to time, if anybody listens.
struct Report {
    next: Option<Instant>,
    last: u64,
}

impl Report {
    fn new() -> Self {
        Self { next: tracing::enabled!(tracing::Level::DEBUG).then(Instant::now), last: 0 }
    }

    fn timeout(&self) -> PollTimeout {
        let Some(next) = self.next else { return PollTimeout::NONE };
        let left = next.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_millis() as i32 + 1).unwrap_or(PollTimeout::ZERO)
    }

    fn tell(&mut self, shared: &Shared) {
        if self.next.is_none_or(|next| Instant::now() < next) {
            return;
        }
        self.next = Some(Instant::now() + REPORT_INTERVAL);
        let [dropped, fallbacks] = [true, false].map(|lost| {
            let counts = shared.counts(lost).filter(|(_, count)| *count != 0);
            counts.collect::<Vec<_>>()
        });
        let sum = dropped.iter().chain(&fallbacks).map(|(_, count)| count).sum();
        if sum != self.last {
            self.last = sum;
            tracing::debug!(?dropped, ?fallbacks, "since the start");
        }
    }
}
