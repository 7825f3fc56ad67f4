//! The backend `userspace`: the program `warren-tunnel`, processes of their own that outlive this daemon.
//!
//! Started when an interface or its socket is missing; configured and read over its socket with the
//! standard cross-platform protocol (<https://www.wireguard.com/xplatform/>).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::unistd::Pid;
use tokio::process::Command;
use warren_api::status::TunnelCounters;
use warren_api::{PublicKey, names};
use warren_core::{DeviceChange, ObservedDevice, ObservedPeer, PeerChange};
use warren_tunnel::uapi::{self, AllowedIpChange, DeviceState, DeviceUpdate, PeerUpdate, client};

use crate::blocking::blocking;
use crate::keystore::Identity;

/// How long the tunnel may take to tell its state. It takes milliseconds; a process that is stopped or starved
/// must not keep this daemon from repairing the guard and the routes within 2 s.
const ANSWER: Duration = Duration::from_millis(500);

/// How long it may take to change: as long, and once for each peer whose session it sets up anew.
const CHANGE: Duration = Duration::from_secs(5);

/// How long somebody else may take to do so before that is said; it is asked again, without a wait until it answers.
const DEMAND: Duration = Duration::from_secs(1);

/// How long it may take to end. It takes milliseconds.
const STOP: Duration = Duration::from_secs(1);

/// How long it may take to create its interface.
const START: Duration = Duration::from_secs(10);

/// How much later than its interface a tunnel's socket may be there. It takes a fraction of a millisecond.
const BIRTH: Duration = Duration::from_millis(20);

/// Whose a TUN is that nobody was found to serve.
pub enum Owner {
    /// A tunnel's that came meanwhile, which is as it is said here.
    Tunnel(Result<ObservedDevice, TunnelError>),
    /// A tunnel's that has gone meanwhile.
    Nobody,
    /// Somebody else's: a tunnel's goes with its process.
    Stranger,
}

/// Drives the tunnels of `warren-tunnel`, one to an interface.
pub struct Userspace {
    /// `None` where somebody else starts it.
    program: Option<PathBuf>,
    /// Those for which somebody was called who did not come: they are waited for once, not at each look.
    missing: Mutex<BTreeSet<String>>,
    /// Who serves those that do not answer, as known at the first look at which they did not. Each look leaves a
    /// connection that waits; once their number is too large for the socket, nobody is told any more.
    silent: Mutex<BTreeMap<Arc<str>, Pid>>,
}

/// Why the tunnel could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The program cannot be run.
    #[error("{program} could not be run; see --tunnel-program")]
    Run {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not come up.
    #[error("{program} {interface} failed: {message}")]
    Start {
        /// Which program.
        program: PathBuf,
        /// For which interface.
        interface: String,
        /// What it said.
        message: String,
    },
    /// Somebody else is to start it, but cannot be told.
    #[error("{file} could not be created; warren-tunnel --on-demand waits for it")]
    Demand {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else starts it, but has not.
    #[error("nobody serves {socket}: is the container warren-tunnel running? See its log")]
    External {
        /// Which socket.
        socket: PathBuf,
    },
    /// Somebody else listens on the tunnel's port.
    #[error("UDP port {port} is taken: see who has it with `ss -lunp`, or choose another with --listen-port")]
    PortTaken {
        /// Which port.
        port: u16,
    },
    /// Its socket did not answer as it should.
    #[error("the tunnel behind {socket} did not answer as it should")]
    Socket {
        /// Which socket.
        socket: PathBuf,
        /// Why.
        source: client::ClientError,
    },
}

impl Userspace {
    /// All tunnels of this node; `program` starts them, unless somebody else does.
    pub fn new(program: Option<PathBuf>) -> Self {
        Self { program, missing: Mutex::default(), silent: Mutex::default() }
    }

    /// The `warren-tunnel` beside this program.
    pub fn default_program() -> PathBuf {
        let name = "warren-tunnel";
        let own = std::env::current_exe().ok();
        own.as_deref().and_then(Path::parent).map_or_else(|| name.into(), |directory| directory.join(name))
    }

    /// Creates interface and device. Returns when both are there: the program goes into the background by
    /// itself then, and is nobody's child any more.
    pub async fn start(&self, interface: &str) -> Result<(), TunnelError> {
        let Some(program) = &self.program else { return self.demand(interface).await };
        let run = |source| TunnelError::Run { program: program.clone(), source };
        let output = Command::new(program)
            .arg(interface)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let failed = |message: String| TunnelError::Start {
            program: program.clone(),
            interface: interface.to_owned(),
            message,
        };
        match tokio::time::timeout(START, output).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                Err(failed(stderr.lines().last().unwrap_or("it gave no reason").to_owned()))
            }
            Ok(Err(error)) => Err(run(error)),
            Err(_) => Err(failed(format!("not up after {} s", START.as_secs()))),
        }
    }

    /// Has somebody else's `warren-tunnel --on-demand` create interface and device.
    async fn demand(&self, interface: &str) -> Result<(), TunnelError> {
        let wanted = uapi::wanted_path(interface);
        File::create(&wanted).map_err(|source| TunnelError::Demand { file: wanted, source })?;
        let patience = if self.missing().contains(interface) { Duration::ZERO } else { DEMAND };
        let deadline = Instant::now() + patience;
        while !matches!(observe(interface).await, Ok(Some(_))) {
            if Instant::now() >= deadline {
                self.missing().insert(interface.to_owned());
                return Err(TunnelError::External { socket: uapi::socket_path(interface) });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.missing().remove(interface);
        Ok(())
    }

    fn missing(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // A set of names is sound after any panic.
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Pid>> {
        // As above: whole after any panic.
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back what somebody else was asked to serve, where that is not wanted.
    pub fn forget(&self, is_wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let interfaces = uapi::wanted()?;
        let mut unwanted = interfaces.iter().filter(|name| names::is_tunnel(name) && !is_wanted(name));
        unwanted.try_for_each(|interface| remove(&uapi::wanted_path(interface)).map(drop))
    }

    /// Ends the device, if there is one: without its socket it removes its interface and exits, or waits until it is
    /// wanted again. Returns when name and port are free, or when that takes too long: then whoever wants them next
    /// is told.
    pub async fn stop(&self, interface: &str) -> io::Result<()> {
        let mut served = false;
        for file in [uapi::wanted_path(interface), uapi::socket_path(interface)] {
            served |= remove(&file)?;
        }
        let gone = async {
            while served && nix::net::if_::if_nametoindex(interface).is_ok() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(STOP, gone).await;
        Ok(())
    }

    /// Kills the process that made an interface's socket, as the kernel knows it (SO_PEERCRED, unix(7)); returns its pid.
    /// What somebody else looks after is not killed: in another container it has no pid here.
    pub fn kill(&self, interface: &str) -> io::Result<Option<i32>> {
        if self.program.is_none() {
            return Ok(None);
        }
        let pid = match server(interface) {
            // Still the same: to another's socket a connection would wait behind fewer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.silent().get(interface).copied().ok_or(error)?
            }
            found => found?,
        };
        kill(pid, Signal::SIGKILL)?;
        Ok(Some(pid.as_raw()))
    }

    /// Reads all devices back that somebody serves.
    pub async fn observe(&self) -> io::Result<BTreeMap<Arc<str>, Result<ObservedDevice, TunnelError>>> {
        let mut interfaces = uapi::with_socket()?;
        interfaces.retain(|interface| names::is_tunnel(interface));
        // Side by side: one that hangs must not keep the others waiting.
        let devices = interfaces.into_iter().map(|interface| async move {
            let device = observe(&interface).await.transpose();
            device.map(|device| (Arc::from(interface), device))
        });
        let devices: BTreeMap<_, _> = join_all(devices).await.into_iter().flatten().collect();
        self.missing().retain(|interface| !devices.contains_key(interface.as_str()));
        self.remember(&devices);
        Ok(devices)
    }

    /// Tells whose a TUN is that is there, and that nobody was found to serve: who makes tunnels makes the interface first,
    /// and ends it last.
    pub async fn owner(&self, interface: &str) -> Owner {
        if let Some(device) = observe(interface).await.transpose() {
            return Owner::Tunnel(device);
        }
        tokio::time::sleep(BIRTH).await;
        match observe(interface).await.transpose() {
            Some(device) => Owner::Tunnel(device),
            None if nix::net::if_::if_nametoindex(interface).is_err() => Owner::Nobody,
            None => Owner::Stranger,
        }
    }

    /// Asks who serves those that are silent for the first time; forgets the others.
    fn remember(&self, devices: &BTreeMap<Arc<str>, Result<ObservedDevice, TunnelError>>) {
        let mut silent = self.silent();
        silent.retain(|interface, _| matches!(devices.get(interface), Some(Err(_))));
        for (interface, _) in devices.iter().filter(|(_, device)| device.is_err()) {
            if !silent.contains_key(interface)
                && let Ok(pid) = server(interface)
            {
                silent.insert(interface.clone(), pid);
            }
        }
    }

    /// Applies one change as one transaction.
    pub async fn configure(
        &self,
        interface: &str,
        change: &DeviceChange,
        identity: &Identity,
    ) -> Result<(), TunnelError> {
        let socket = uapi::socket_path(interface);
        let (path, update) = (socket.clone(), update(change, identity));
        let result = blocking(move || client::set(&path, &update, CHANGE)).await;
        result.map_err(|source| match change.listen_port {
            Some(port) if is_refused_with(&source, nix::libc::EADDRINUSE) => TunnelError::PortTaken { port },
            _ => TunnelError::Socket { socket, source },
        })
    }
}

/// Removes a file; says whether there was one.
fn remove(file: &Path) -> io::Result<bool> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads one device back; `None` if nobody serves it.
async fn observe(interface: &str) -> Result<Option<ObservedDevice>, TunnelError> {
    let socket = uapi::socket_path(interface);
    let path = socket.clone();
    // The client blocks for as long as the tunnel thinks, which must not stop the probes.
    let result = blocking(move || client::get(&path, ANSWER)).await;
    match result {
        Ok(state) => Ok(Some(observed(&state))),
        Err(error) if nobody_there(&error) => Ok(None),
        Err(source) => Err(TunnelError::Socket { socket, source }),
    }
}

/// The process that made an interface's socket, as the kernel knows it (SO_PEERCRED, unix(7)).
fn server(interface: &str) -> io::Result<Pid> {
    let address = UnixAddr::new(&uapi::socket_path(interface))?;
    // Without blocking: a stopped process accepts nobody.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &address)?;
    Ok(Pid::from_raw(socket::getsockopt(&socket, sockopt::PeerCredentials)?.pid()))
}

/// No socket, or one that a dead process left behind.
fn nobody_there(error: &client::ClientError) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, client::ClientError::Connect { source, .. }
        if matches!(source.kind(), NotFound | ConnectionRefused))
}

fn is_refused_with(error: &client::ClientError, errno: i32) -> bool {
    matches!(error, client::ClientError::Answer { source, .. } if source.errno() == errno)
}

fn update(change: &DeviceChange, identity: &Identity) -> DeviceUpdate {
    let DeviceChange { identity: set_key, listen_port, fwmark, peers } = change;
    DeviceUpdate {
        private_key: set_key.then(|| identity.secret_bytes()),
        listen_port: *listen_port,
        fwmark: *fwmark,
        peers: peers.iter().map(peer_update).collect(),
        ..DeviceUpdate::default()
    }
}

fn peer_update(change: &PeerChange) -> PeerUpdate {
    let PeerChange { public_key, remove, endpoint, keepalive, add, drop } = change;
    PeerUpdate {
        remove: *remove,
        endpoint: *endpoint,
        persistent_keepalive: *keepalive,
        allowed_ips: add
            .iter()
            .map(|net| AllowedIpChange::add(*net))
            .chain(drop.iter().map(|net| AllowedIpChange::remove(*net)))
            .collect(),
        ..PeerUpdate::new(*public_key.as_bytes())
    }
}

fn observed(state: &DeviceState) -> ObservedDevice {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let public_key = state.private_key.as_ref().and_then(|key| {
        let secret = x25519_dalek::StaticSecret::from(**key);
        PublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes()).ok()
    });
    let peers = state.peers.iter().filter_map(|peer| {
        let observed = ObservedPeer {
            endpoint: peer.endpoint,
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            keepalive: peer.persistent_keepalive,
            since_handshake: peer.last_handshake.map(|at| now.saturating_sub(at)),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
        };
        Some((PublicKey::from_bytes(peer.public_key).ok()?, observed))
    });
    ObservedDevice {
        public_key,
        listen_port: state.listen_port,
        fwmark: state.fwmark,
        counters: TunnelCounters { dropped: state.dropped.clone(), fallbacks: state.fallbacks.clone() },
        peers: peers.collect(),
    }
}
