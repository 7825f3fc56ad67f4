//! What a running `warrend` says of itself at `GET /status`, as JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Backend, PublicKey};

/// The state of one node as its daemon last read it back from the kernel and the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The own node's name.
    pub node: String,
    /// The own public key of the current epoch.
    pub public_key: PublicKey,
    /// The current epoch.
    pub epoch: u64,
    /// What carries the tunnels.
    pub backend: Backend,
    /// Why WireGuard in the kernel does not carry them, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The first tunnel's interface.
    pub interface: String,
    /// How many lanes the node serves, each with an interface or a thread of its own.
    #[serde(default)]
    pub lanes: u8,
    /// Whether flows are spread over them by ports, too, and not by addresses alone; absent where there is one lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_by_ports: Option<bool>,
    /// The MTU of the tunnel interface, in bytes.
    pub mtu: u32,
    /// `strict` or `permissive`.
    pub enforcement: Enforcement,
    /// Whether all that is wanted was found in place at the last look.
    pub ready: bool,
    /// What keeps it from being ready, for a human.
    #[serde(default)]
    pub problems: Vec<String>,
    /// The own pod CIDRs.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The own underlay addresses.
    pub endpoints: Vec<IpAddr>,
    /// All peers with a tunnel.
    pub peers: Vec<PeerStatus>,
    /// Nodes that are not obeyed, and why.
    pub quarantined: Vec<Quarantined>,
    /// Nodes that have not announced a key yet.
    pub waiting: Vec<String>,
    /// How it stands with the registry, where that is a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryStatus>,
    /// Whether the node leaves the mesh, or has left it.
    #[serde(default)]
    pub withdrawn: bool,
    /// Packets that the guard stopped, or in permissive mode would have stopped.
    pub guard: GuardCounters,
    /// What the tunnels tell of packets that did not go the usual way.
    #[serde(default)]
    pub tunnel: TunnelCounters,
}

/// How it stands with a registry that is a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// Its URL.
    pub source: String,
    /// Whether it answers. What is known of the nodes holds while it does not.
    pub connected: bool,
    /// Seconds since something last came from it.
    pub last_contact_age: f64,
    /// Why it does not answer, for a human.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Why this node's announcement does not stand there, for a human.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<String>,
    /// Requests made of it since the start, by verb (`list`, `watch`, `get`, `patch`, `create`).
    pub requests: BTreeMap<String, u64>,
    /// Happenings that were too many to be told as Events.
    pub suppressed_events: u64,
}

/// Whether the guard drops, or only counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// What is not encrypted is dropped and counted.
    #[default]
    Strict,
    /// What strict would drop is counted and passes: for the first days of a rollout.
    Permissive,
}

/// One peer, as the tunnel reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The peer's node name.
    pub node: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// What carries its end.
    pub backend: Backend,
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last completed handshake; absent before the first.
    pub handshake_age: Option<f64>,
    /// The lanes on which there is a session with it.
    #[serde(default)]
    pub lanes: u8,
    /// Bytes received from it, WireGuard overhead included.
    pub rx_bytes: u64,
    /// Bytes sent to it, WireGuard overhead included.
    pub tx_bytes: u64,
    /// Its allowed IPs.
    #[serde(rename = "allowedIPs")]
    pub allowed_ips: Vec<IpNet>,
}

/// One node that is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quarantined {
    /// The node's name, or the file that should hold one.
    pub node: String,
    /// Why, for a human.
    pub reason: String,
}

/// What `warren-tunnel` counts, by reason, of all its lanes together; nothing where the kernel carries the tunnels, which
/// does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelCounters {
    /// Packets that were lost.
    pub dropped: BTreeMap<String, u64>,
    /// What went another way than the usual: runs sent one by one, for example. Nothing of it is lost.
    pub fallbacks: BTreeMap<String, u64>,
}

impl TunnelCounters {
    /// Adds what another tunnel counts.
    pub fn add(&mut self, other: &Self) {
        let groups = [(&mut self.dropped, &other.dropped), (&mut self.fallbacks, &other.fallbacks)];
        for (sums, counts) in groups {
            for (reason, count) in counts {
                *sums.entry(reason.clone()).or_default() += count;
            }
        }
    }
}

/// The guard's counters, in packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardCounters {
    /// Packets to a remote pod that were about to leave in the clear.
    pub out_pod: u64,
    /// Packets from a local pod to another node's address that were about to leave in the clear.
    pub out_node: u64,
    /// Packets from a remote pod's address that arrived in the clear.
    pub in_pod: u64,
    /// Packets from another node's address to a local pod that arrived in the clear.
    pub in_node: u64,
}
