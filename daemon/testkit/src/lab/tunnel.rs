//! The tunnel of a node, whatever carries it: how it is told from another, and how it is lost.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::Pid;
use warren_api::names;

use super::{Backend, Node, Rights};
use crate::wait;

/// How long `warren-tunnel` may take to end. It takes milliseconds.
const STOP: Duration = Duration::from_secs(5);

/// One tunnel of many that a node may have had, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The number that the kernel gave its interface, and gives to no other.
    pub interface: u32,
    /// The pid of its `warren-tunnel`, where it is not the kernel's.
    pub pid: Option<u32>,
}

impl Node {
    /// The tunnel that there is now.
    pub fn tunnel(&self) -> Result<Tunnel> {
        let name = names::interface(0, 0);
        let link = self.netns.sh(&format!("ip -oneline link show dev {name}"))?;
        let interface = link.split(':').next().and_then(|number| number.parse().ok());
        let interface = interface.with_context(|| format!("ip says {link:?}"))?;
        let pid = match self.backend {
            Backend::Kernel => None,
            Backend::Userspace => Some(self.tunnel_pid()?),
        };
        Ok(Tunnel { interface, pid })
    }

    /// Fails, as [`Backend::needs_process`], unless a `warren-tunnel` carries this node's tunnel.
    pub fn needs_tunnel_process(&self) -> Result<()> {
        self.backend.needs_process()
    }

    /// Starts `warren-tunnel --on-demand` as its container does, with the rights of the manifest. It ends
    /// with the node, or by [`Node::kill_tunnel`].
    pub fn start_tunnel(&self) -> Result<()> {
        let mut command = Rights::Manifest.command(self, "warren-tunnel")?;
        command.args(["--on-demand", names::INTERFACE_PREFIX]);
        self.log_output(&mut command)?;
        let mut tunnel = self.tunnel.lock().expect("no thread panics with the lock");
        ensure!(tunnel.is_none(), "warren-tunnel already runs on {}", self.name);
        *tunnel = Some(command.spawn().with_context(|| format!("starting warren-tunnel on {}", self.name))?);
        Ok(())
    }

    /// The pid of the `warren-tunnel` that serves the first lane of this node.
    pub fn tunnel_pid(&self) -> Result<u32> {
        self.lane_pid(0)
    }

    /// The pid of the `warren-tunnel` that serves a lane, as the kernel knows it (SO_PEERCRED, unix(7)): also of one that
    /// hangs. Where [`Node::start_tunnel`] started it, all lanes are one process's.
    pub fn lane_pid(&self, lane: u8) -> Result<u32> {
        let pid = self.call_tunnel(lane).and_then(|socket| Ok(getsockopt(&socket, PeerCredentials)?.pid()));
        let socket = socket_path(lane);
        let pid = pid.with_context(|| format!("asking who has {} on {}", socket.display(), self.name))?;
        u32::try_from(pid).with_context(|| format!("{} has the pid {pid}", socket.display()))
    }

    /// Connects to the socket of a lane's `warren-tunnel`, without waiting: one that hangs accepts nobody, and nobody can
    /// connect (EAGAIN) once many wait.
    pub fn call_tunnel(&self, lane: u8) -> Result<OwnedFd> {
        self.netns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            connect(socket.as_raw_fd(), &UnixAddr::new(&socket_path(lane))?)?;
            Ok(socket)
        })?
    }

    /// Has all lanes gone at once: SIGKILL for `warren-tunnel`, deletion of the interfaces for the kernel. Returns
    /// at once, or, where the process was started by [`Node::start_tunnel`], when it is gone.
    pub fn kill_tunnel(&self) -> Result<()> {
        match self.backend {
            Backend::Kernel => self.delete_tunnels(),
            Backend::Userspace => self.kill_tunnel_processes(),
        }
    }

    /// [`Node::kill_tunnel`] for one lane, which warrend started.
    pub fn kill_lane(&self, lane: u8) -> Result<()> {
        match self.backend {
            Backend::Kernel => {
                self.netns.sh(&format!("ip link delete {}", names::interface(0, lane))).map(drop)
            }
            Backend::Userspace => self.signal_tunnel(self.lane_pid(lane)?, Signal::SIGKILL),
        }
    }

    /// Ends the `warren-tunnel` that [`Node::start_tunnel`] started, as the kubelet does; it has to end well.
    pub fn stop_tunnel(&self) -> Result<()> {
        let mut running = self.tunnel.lock().expect("no thread panics with the lock");
        let tunnel = running.as_mut().with_context(|| format!("nobody started a tunnel on {}", self.name))?;
        self.signal_tunnel(tunnel.id(), Signal::SIGTERM)?;
        let status = wait::until(&format!("the end of warren-tunnel on {}", self.name), STOP, || {
            tunnel.try_wait()?.context("it still runs")
        })?;
        *running = None;
        ensure!(status.success(), "warren-tunnel on {}: {status}", self.name);
        Ok(())
    }

    fn signal_tunnel(&self, pid: u32, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(pid as i32), signal)
            .with_context(|| format!("sending {signal} to warren-tunnel ({pid}) on {}", self.name))
    }

    fn delete_tunnels(&self) -> Result<()> {
        let links = self.netns.sh("ip -brief link show type wireguard")?;
        ensure!(!links.is_empty(), "there is no tunnel on {}", self.name);
        let names = links.lines().filter_map(|line| line.split_whitespace().next());
        names.map(|name| self.netns.sh(&format!("ip link delete {name}"))).try_for_each(|done| done.map(drop))
    }

    fn kill_tunnel_processes(&self) -> Result<()> {
        let pids = self.netns.pids_of("warren-tunnel")?;
        ensure!(!pids.is_empty(), "no warren-tunnel runs on {}", self.name);
        pids.into_iter().try_for_each(|pid| self.signal_tunnel(pid, Signal::SIGKILL))?;
        let tunnel = self.tunnel.lock().expect("no thread panics with the lock").take();
        if let Some(mut tunnel) = tunnel {
            tunnel
                .wait()
                .with_context(|| format!("waiting for the end of warren-tunnel on {}", self.name))?;
        }
        Ok(())
    }
}

fn socket_path(lane: u8) -> PathBuf {
    PathBuf::from(format!("/run/wireguard/{}.sock", names::interface(0, lane)))
}
