//! N nodes with pods on one underlay.
//!
//! ```text
//!   pod 10.244.1.11  pod 10.244.1.12          pod 10.244.2.11 …
//!        └──────┬─────────┘                        └──┬──
//!      cni0 10.244.1.1                          cni0 10.244.2.1
//!      node-1, ip_forward                       node-2, ip_forward       attacker
//!      eth0 192.0.2.1                           eth0 192.0.2.2           eth0 192.0.2.250
//!           └──────────────┬─────────────────────────┴──────────────────────┘
//!                  bridge in netns underlay  (capture::Capture listens to its ports)
//! ```
//!
//! Each node's main table has a route to every other node's pod CIDR by that node's underlay address, as
//! host-gateway CNI plugins write them: **without Warren the pods talk in the clear**. A test that sees no
//! clear text has therefore seen Warren prevent it. (The exception is [`Plan::has_clear_path`].)
//!
//! Reverse-path filters are off and IPv6 addresses are usable at once (no duplicate address detection), so
//! that nothing but Warren drops a forged packet and no test waits for the kernel.
//!
//! The registry is a directory of Node manifests or, with [`Registry::Kubernetes`], a real API server on
//! a machine of its own on the underlay (192.0.2.251); see [`crate::apiserver::real`].

mod backend;
mod container;
mod kubernetes;
mod manifest;
mod node;
mod plan;
mod shipped;
mod tunnel;
mod warrend;

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

use crate::apiserver::real::{self, ApiServer};
use crate::netns::Netns;
use crate::{isolate, tools};

pub use backend::{Backend, needs_kernel_wireguard};
pub use kubernetes::{DAEMON, NAMESPACE, STARTUP_TAINT};
pub use manifest::{Manifest, write_atomically};
pub use node::{Node, Pod};
pub use plan::{Families, MAX_NODES, Plan, Registry, host};
pub use tunnel::Tunnel;
pub use warrend::{Rights, WarrendOptions, binary};

/// Labs of one program must not meet in /run.
static LABS: AtomicUsize = AtomicUsize::new(1);

/// A running lab. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Lab {
    /// What it was built from.
    pub plan: Plan,
    /// The nodes; node number n is `nodes[n - 1]`.
    pub nodes: Vec<Node>,
    /// A machine on the underlay that is no node: where forged packets come from.
    pub attacker: Netns,
    /// The namespace of the underlay's bridge, whose ports are named like the machines behind them.
    pub underlay: Netns,
    /// Where the Nodes stand, when it is no directory.
    api: Option<ApiServer>,
    /// Registry, state and logs, on a tmpfs of this program.
    directory: PathBuf,
}

impl Lab {
    /// Builds the lab and fills the registry with its Nodes. Warren does not run yet.
    pub fn new(plan: Plan) -> Result<Self> {
        Self::new_with_progress(plan, |_| {})
    }

    /// [`Lab::new`], telling `progress` how many nodes stand.
    pub fn new_with_progress(plan: Plan, mut progress: impl FnMut(usize)) -> Result<Self> {
        tools::requires(&["ip", "nft"])?;
        isolate::ensure_entered()?;
        if plan.registry == Registry::Kubernetes {
            real::ensure_present()?;
        }
        ensure!(
            (1..=MAX_NODES).contains(&plan.nodes),
            "a lab has 1 to {MAX_NODES} nodes, not {}",
            plan.nodes
        );
        ensure!(plan.pods <= 200, "a node of a lab has at most 200 pods, not {}", plan.pods);

        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = if number == 1 { String::new() } else { format!("lab{number}-") };
        let directory = PathBuf::from(format!("/run/warren-lab-{number}"));
        fs::create_dir_all(directory.join("registry"))
            .with_context(|| format!("creating {}", directory.display()))?;

        let underlay = Netns::new(&format!("{prefix}underlay"))?;
        // Without snooping, the bridge would learn multicast groups first and lose early neighbour discovery.
        underlay.ip(&format!(
            "link add underlay mtu {} type bridge mcast_snooping 0\nlink set underlay up",
            plan.mtu
        ))?;
        let attacker = Netns::new(&format!("{prefix}attacker"))?;
        plug(&attacker, &underlay, "attacker", &plan.attacker_ips(), &plan)?;

        let mut nodes = Vec::with_capacity(plan.nodes);
        for number in 1..=plan.nodes {
            nodes.push(Node::new(&plan, number, &prefix, &underlay, &directory)?);
            progress(number);
        }
        let api = match plan.registry {
            Registry::Directory => {
                nodes.iter().try_for_each(|node| node.manifest().write(&directory.join("registry")))?;
                None
            }
            Registry::Kubernetes => Some(kubernetes::start(&plan, &prefix, &underlay, &nodes, &directory)?),
        };
        Ok(Self { plan, nodes, attacker, underlay, api, directory })
    }

    /// Node number `number`, from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The directory of Node manifests.
    pub fn registry(&self) -> PathBuf {
        self.directory.join("registry")
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// Starts warrend on every node.
    pub fn start_all(&self, options: &WarrendOptions) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.start_warrend(options))
    }

    /// The end of the log of every node that has one, and what it and its kernel have dropped, for the report of a failure.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            if !lines.is_empty() {
                let tail = &lines[lines.len().saturating_sub(30)..];
                let _ = writeln!(text, "--- log of {}\n{}", node.name, tail.join("\n"));
                let _ = writeln!(text, "--- dropped by {}\n{}", node.name, dropped(node).join("\n"));
            }
        }
        text
    }
}

/// The counters of drops that are not zero.
fn dropped(node: &Node) -> Vec<String> {
    const KERNEL: [&str; 6] = ["Drop", "Error", "Discard", "Filter", "NoRoute", "Unreach"];
    let metrics = node.metrics().unwrap_or_default();
    let tunnels = metrics.lines().filter(|line| line.contains("_packets_total{") && !line.ends_with(" 0"));
    let kernel = node.netns.sh("nstat -as").unwrap_or_default();
    let kernel = kernel.lines().filter(|line| KERNEL.iter().any(|what| line.contains(what)));
    tunnels.chain(kernel).map(str::to_owned).collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What still runs would write into the directory.
        self.nodes.clear();
        self.api = None;
        // Best effort: the tmpfs goes with the program.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Sysctls of every machine, set before its links exist so that `default` counts for them.
fn common_sysctls(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.disable_ipv6", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.conf.default.router_solicitations", "0"),
    ])
}

/// Gives a machine its `eth0`, plugged into the underlay's bridge, where the port has the name `port`.
fn plug(machine: &Netns, underlay: &Netns, port: &str, ips: &[IpAddr], plan: &Plan) -> Result<()> {
    common_sysctls(machine)?;
    let mtu = plan.mtu;
    // What a machine sends is segmented before it leaves, as on a wire: the capture counts and measures frames.
    let mut batch = format!(
        "link add eth0 mtu {mtu} type veth peer name {port} mtu {mtu} netns {}\n\
         link set eth0 gso_max_segs 1 up\n",
        underlay.name()
    );
    for (ip, cidr) in ips.iter().zip(plan.node_cidrs()) {
        let _ = writeln!(batch, "address add {ip}/{} dev eth0", cidr.prefix_len());
    }
    machine.ip(&batch)?;
    underlay.ip(&format!("link set {port} master underlay up"))
}
