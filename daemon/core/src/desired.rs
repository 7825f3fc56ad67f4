//! What should be on this node: the guard, the tunnel, the routes and the rules, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use warren_api::status::Enforcement;
use warren_api::{Backend, PublicKey};

/// All that should be on this node. The default is what a node without Warren has: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// The guard; absent only when Warren is taken off the node.
    pub guard: Option<Guard>,
    /// The tunnels by their interfaces, one for each lane; none while the own node is unknown to the registry.
    pub tunnels: BTreeMap<Arc<str>, Tunnel>,
    /// The links of the underlay, by their numbers, on which packets of other nodes arrive whose answers go into
    /// tunnels: a strict reverse-path filter would refuse them there.
    pub loose: BTreeSet<u32>,
    /// All routes of Warren's own tables.
    pub routes: BTreeSet<Route>,
    /// The rules that lead to those tables.
    pub rules: BTreeSet<Rule>,
}

impl Desired {
    /// Does without a tunnel, and with all that leads into it: its interface is somebody else's.
    pub fn do_without(&mut self, interface: &str) {
        self.tunnels.remove(interface);
        let leads_there = |kind: &RouteKind| match kind {
            RouteKind::Tunnel { interfaces, .. } => interfaces.iter().any(|other| **other == *interface),
            RouteKind::Unreachable | RouteKind::Foreign => false,
        };
        self.routes.retain(|route| !leads_there(&route.kind));
    }
}

/// The nftables rules that keep "encrypted or dropped", reduced to what varies between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// Whether it drops or only counts.
    pub enforcement: Enforcement,
    /// Addresses that belong to pods of other nodes.
    pub remote_pods: BTreeSet<IpNet>,
    /// Addresses that belong to pods of this node.
    pub local_pods: BTreeSet<IpNet>,
    /// Underlay addresses of other nodes.
    pub remote_nodes: BTreeSet<IpNet>,
    /// Those of them to which nothing of this node's own programs leaves in the clear either.
    pub hosts: BTreeSet<IpNet>,
}

/// One WireGuard interface and its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// What carries it.
    pub backend: Backend,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its UDP port.
    pub listen_port: u16,
    /// The mark of the packets it sends (`SO_MARK`, socket(7)); 0 for none.
    pub fwmark: u32,
    /// Its public key; who applies this holds the private one.
    pub public_key: PublicKey,
    /// Its addresses, each a single host: the network addresses of the own pod CIDRs.
    pub addresses: BTreeSet<IpAddr>,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, TunnelPeer>,
}

/// One WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Where it announced to be. WireGuard moves it to where authenticated packets come from.
    pub endpoint: SocketAddr,
    /// What may come from it and goes to it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives.
    pub keepalive: u16,
}

/// One route in one of Warren's tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The routing table.
    pub table: u32,
    /// Where to.
    pub destination: IpNet,
    /// The metric: the lowest wins among routes to the same destination.
    pub metric: u32,
    /// What happens to a packet that takes it.
    pub kind: RouteKind,
}

/// What happens to a packet that takes a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Out through a tunnel, with this source if the packet has none yet.
    Tunnel {
        /// The interfaces' names, which thousands of routes share, at least one. Over several, the kernel spreads
        /// flows by a hash of their addresses and ports.
        interfaces: Arc<[Arc<str>]>,
        /// The preferred source.
        source: Option<IpAddr>,
        /// The largest packet that gets through, in bytes, where that is less than the interfaces' MTU.
        mtu: Option<u32>,
    },
    /// Refused with an ICMP error, so that senders fail at once and not by a time-out.
    Unreachable,
    /// Something that Warren never puts into its tables; observed, never desired.
    Foreign,
}

impl Route {
    /// What makes the kernel take two routes for the same one.
    pub fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.destination, self.metric)
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<&IpNet> for Family {
    fn from(net: &IpNet) -> Self {
        if matches!(net, IpNet::V4(_)) { Self::V4 } else { Self::V6 }
    }
}

/// One policy routing rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The address family it serves.
    pub family: Family,
    /// Its priority: lower is asked first.
    pub priority: u32,
    /// Only packets from here, where given.
    pub source: Option<IpNet>,
    /// Only packets to here, where given.
    pub destination: Option<IpNet>,
    /// Only TCP segments with this port, where given.
    pub port: Option<Port>,
    /// Only packets without any bit of this mark, where given.
    pub unmarked: Option<u32>,
    /// The table it consults.
    pub table: u32,
}

/// A TCP port that a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// Where the segment comes from.
    Source(u16),
    /// Where it goes.
    Destination(u16),
}

impl Rule {
    /// The table that it leads this node's own programs to, if it does; they are told by what they lack, the mark of the
    /// tunnels' own packets.
    pub fn programs(&self) -> Option<u32> {
        self.unmarked.map(|_| self.table)
    }

    /// A rule for all packets of a family.
    pub fn new(family: Family, priority: u32, table: u32) -> Self {
        Self { family, priority, source: None, destination: None, port: None, unmarked: None, table }
    }
}
