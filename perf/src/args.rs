//! The command line.

use clap::{Args as Group, Parser, Subcommand, ValueEnum};

use crate::lanes::Flow;

/// Warren's lab: see the mesh work, and measure it.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a mesh in network namespaces, run real traffic through it, and look for clear text.
    ///
    /// As root, or without root in a user namespace of its own. Leaves nothing behind, however it ends.
    Demo(Demo),
    /// Show what each lane of this node carries and, with --flow, which lane a flow takes.
    ///
    /// To be run on a node, in its network namespace. Changes nothing.
    Lanes(Lanes),
    /// Measure WireGuard programs side by side on this machine, in namespaces, and judge Warren by its targets.
    ///
    /// As root, or without root in a user namespace of its own. Leaves nothing behind, however it ends.
    Bench(crate::bench::Options),
    /// Make tables and plots of runs that `bench` or `client` kept.
    Report(crate::report::Options),
    /// Receive what `client` sends from another machine, until interrupted.
    Server(crate::pair::ServerOptions),
    /// Measure the path to another machine, where `server` runs.
    Client(crate::pair::ClientOptions),
}

/// Options of `lanes`.
#[derive(Debug, Clone, Group)]
pub struct Lanes {
    /// A flow from this node: PROTOCOL,SOURCE:PORT,DESTINATION:PORT.
    #[arg(long)]
    pub flow: Option<Flow>,
    /// Seconds for which the flow's packets are looked for on the lanes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub seconds: u16,
}

/// Options of `demo`.
#[derive(Debug, Clone, Group)]
pub struct Demo {
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=100))]
    pub nodes: u16,
    /// Seconds of each iperf3 measurement [default: 2; with more than 5 nodes 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: Option<u32>,
    /// Where nodes publish and find each other's keys.
    #[arg(long, value_enum, default_value_t = Registry::Dir)]
    pub registry: Registry,
    /// Leave the lab up at the end, print how to enter it, and wait for Ctrl-C.
    #[arg(long)]
    pub keep: bool,
}

/// The registries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Registry {
    /// A directory of Node manifests.
    Dir,
    /// A Kubernetes API server on a machine of its own, and a ServiceAccount's token for each daemon.
    Kubernetes,
}

impl Demo {
    /// Seconds of each measurement.
    pub fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(if self.nodes > 5 { 1 } else { 2 })
    }
}
