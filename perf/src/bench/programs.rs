//! The programs that are measured: where they are, what they say they are, how they are started.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use warren_testkit::netns::Netns;
use warren_testkit::{lab, process, tools, wait};

use crate::machine::{first_line, kernel_release};

/// The interface of every program on both ends.
pub const INTERFACE: &str = "wg0";

/// The first wireguard-go whose figures Warren's targets stand beside. Those before 2023 have no offloads: to beat
/// them proves nothing.
const WIREGUARD_GO: u64 = 20_250_522;

/// Whoever carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// `warren-tunnel`, as built beside this program.
    Warren,
    /// The same, with `ring` to encrypt even where there is something faster.
    WarrenRing,
    /// The reference implementation in Go.
    WireguardGo,
    /// Mullvad's, in Rust.
    Gotatun,
    /// Cloudflare's, in Rust.
    Boringtun,
    /// WireGuard in the kernel.
    Kernel,
    /// No tunnel: the link itself, in the clear.
    Plain,
}

/// A program and where it is, or why it cannot be measured here.
pub struct Candidate {
    /// Which.
    pub program: Program,
    /// The file; empty for what is in the kernel.
    pub path: Result<PathBuf>,
}

impl Candidate {
    /// Looks for a program.
    pub fn find(program: Program) -> Self {
        let path = match program {
            Program::Warren | Program::WarrenRing => lab::binary("warren-tunnel"),
            Program::WireguardGo => on_path("wireguard-go").and_then(|path| {
                let version = program.version(&path);
                ensure!(
                    go_date(&version).is_some_and(|date| date >= WIREGUARD_GO),
                    "{} is {version:?}; {WIREGUARD_GO} or newer is what counts: `make bench` fetches it",
                    path.display()
                );
                Ok(path)
            }),
            Program::Gotatun => on_path("gotatun"),
            Program::Boringtun => on_path("boringtun-cli"),
            Program::Kernel => kernel_has_wireguard().map(|()| PathBuf::new()),
            Program::Plain => Ok(PathBuf::new()),
        };
        Self { program, path }
    }
}

fn on_path(name: &str) -> Result<PathBuf> {
    tools::find(name).with_context(|| format!("no {name} on PATH: `make bench` installs it"))
}

fn kernel_has_wireguard() -> Result<()> {
    let probed = Netns::new("bench-probe")?.ip("link add probe type wireguard");
    probed.ok().context("this kernel has no WireGuard")
}

/// The date in `wireguard-go v0.0.20250522`.
fn go_date(version: &str) -> Option<u64> {
    version.rsplit(['.', ' ']).next()?.parse().ok()
}

impl Program {
    /// By which it is called on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warren => "warren",
            Self::WarrenRing => "warren-ring",
            Self::WireguardGo => "wireguard-go",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun",
            Self::Kernel => "kernel",
            Self::Plain => "plain",
        }
    }

    /// What it says it is.
    pub fn version(self, path: &Path) -> String {
        match self {
            Self::Kernel => format!("Linux {}", kernel_release()),
            Self::Plain => "the link without a tunnel".into(),
            _ => first_line(Command::new(path).args(self.options()).arg("--version")),
        }
    }

    /// How it is not to be as it is by default.
    fn options(self) -> &'static [&'static str] {
        if self == Self::WarrenRing { &["--aead", "ring"] } else { &[] }
    }

    /// The name of its processes (`/proc/PID/comm`), if it has any.
    pub fn comm(self) -> Option<&'static str> {
        match self {
            Self::Warren | Self::WarrenRing => Some("warren-tunnel"),
            Self::WireguardGo => Some("wireguard-go"),
            Self::Gotatun => Some("gotatun"),
            Self::Boringtun => Some("boringtun-cli"),
            Self::Kernel | Self::Plain => None,
        }
    }

    /// Starts it in `netns`, with its own defaults but for its name's; returns once [`INTERFACE`] can be configured.
    pub fn start(self, path: &Path, netns: &Netns) -> Result<()> {
        let mut command = netns.command(path);
        command.args(self.options());
        // Both log to a file of a fixed name in /tmp, which belongs to somebody else.
        let log = format!("/run/tmp/{}.log", netns.name());
        match self {
            Self::Plain => return Ok(()),
            Self::Kernel => return netns.ip(&format!("link add {INTERFACE} type wireguard")),
            Self::Warren | Self::WarrenRing | Self::WireguardGo => command.arg(INTERFACE),
            Self::Gotatun | Self::Boringtun => {
                command.args(["--disable-drop-privileges", "--log", &log, INTERFACE])
            }
        };
        // They go into the background.
        process::output(&mut command)?;
        // Not all of them wait until they can be asked.
        wait::until(self.name(), Duration::from_secs(5), || {
            if netns.sh(&format!("wg show {INTERFACE} public-key"))?.is_empty() {
                bail!("wg says nothing of {INTERFACE}");
            }
            Ok(())
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_wireguard_go_is_read() {
        assert_eq!(go_date("wireguard-go v0.0.20250522"), Some(20_250_522));
        assert!(go_date("wireguard-go v0.0.20220316").unwrap() < WIREGUARD_GO);
        assert_eq!(go_date(""), None);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for program in Program::value_variants() {
            assert_eq!(program.to_possible_value().unwrap().get_name(), program.name());
        }
    }
}
