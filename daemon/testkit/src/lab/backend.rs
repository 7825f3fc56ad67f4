//! Which nodes of a lab have their tunnel in the kernel.
//!
//! `$WARREN_TEST_BACKEND` chooses, so that the same scenarios run with either: `userspace` (also without the
//! variable, because not every kernel has WireGuard), `kernel`, or `mixed`, where odd nodes have the kernel's.

use anyhow::{Result, bail};

use crate::netns::Netns;
use crate::scenario;

/// What carries the tunnels of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// WireGuard in the kernel.
    Kernel,
    /// The program `warren-tunnel`.
    Userspace,
}

impl Backend {
    /// That of a node, by its number from 1.
    pub fn of(number: usize) -> Result<Self> {
        let chosen = std::env::var("WARREN_TEST_BACKEND").unwrap_or_default();
        Ok(match chosen.as_str() {
            "" | "userspace" => Self::Userspace,
            "kernel" => Self::Kernel,
            "mixed" if number % 2 == 1 => Self::Kernel,
            "mixed" => Self::Userspace,
            _ => bail!("WARREN_TEST_BACKEND is {chosen:?}; it may be kernel, userspace or mixed"),
        })
    }

    /// Fails, as [`scenario::not_run`], unless a process carries the tunnels.
    pub fn needs_process(self) -> Result<()> {
        match self {
            Self::Userspace => Ok(()),
            Self::Kernel => Err(scenario::not_run("the kernel carries the tunnels, not a process")),
        }
    }

    /// As warrend's `--backend` takes it.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// Fails, as [`scenario::not_run`], where the kernel has no WireGuard.
pub fn needs_kernel_wireguard() -> Result<()> {
    let netns = Netns::new("wireguard-probe")?;
    match netns.ip("link add probe type wireguard") {
        Ok(()) => Ok(()),
        Err(_) => {
            Err(scenario::not_run("this kernel has no WireGuard; `make test-kernel` runs it in one that has"))
        }
    }
}
