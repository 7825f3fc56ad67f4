//! The tunnel of a node, whatever carries it: how it is told from another, and how it is lost.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_api::names;

use super::{Backend, Node, Rights};
use crate::scenario;

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

    /// Fails, as [`scenario::not_run`], unless a `warren-tunnel` carries this node's tunnel.
    pub fn needs_tunnel_process(&self) -> Result<()> {
        match self.backend {
            Backend::Userspace => Ok(()),
            Backend::Kernel => {
                Err(scenario::not_run(format!("the tunnel of {} is the kernel's, not a process", self.name)))
            }
        }
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

    /// The pid of the one `warren-tunnel` on this node.
    pub fn tunnel_pid(&self) -> Result<u32> {
        match self.netns.pids_of("warren-tunnel")?[..] {
            [pid] => Ok(pid),
            [] => bail!("no warren-tunnel runs on {}", self.name),
            ref several => bail!("{} warren-tunnels run on {}: {several:?}", several.len(), self.name),
        }
    }

    /// Has the tunnel gone at once: SIGKILL for `warren-tunnel`, deletion of the interfaces for the kernel. Returns
    /// at once, or, where the process was started by [`Node::start_tunnel`], when it is gone.
    pub fn kill_tunnel(&self) -> Result<()> {
        match self.backend {
            Backend::Kernel => self.delete_tunnels(),
            Backend::Userspace => self.kill_tunnel_process(),
        }
    }

    fn delete_tunnels(&self) -> Result<()> {
        let links = self.netns.sh("ip -brief link show type wireguard")?;
        ensure!(!links.is_empty(), "there is no tunnel on {}", self.name);
        let names = links.lines().filter_map(|line| line.split_whitespace().next());
        names.map(|name| self.netns.sh(&format!("ip link delete {name}"))).try_for_each(|done| done.map(drop))
    }

    fn kill_tunnel_process(&self) -> Result<()> {
        let pid = self.tunnel_pid()?;
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)
            .with_context(|| format!("killing warren-tunnel ({pid}) on {}", self.name))?;
        let tunnel = self.tunnel.lock().expect("no thread panics with the lock").take();
        if let Some(mut tunnel) = tunnel {
            tunnel
                .wait()
                .with_context(|| format!("waiting for the end of warren-tunnel on {}", self.name))?;
        }
        Ok(())
    }
}
