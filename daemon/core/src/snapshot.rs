//! What the registry and the command line say, at one moment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Family;
use crate::numbers::Numbers;
use ipnet::IpNet;
use warren_api::status::Enforcement;
use warren_api::{Announcement, AnnouncementError, Backend, Node, PublicKey, annotations};

/// All that a plan is made from.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The node this daemon runs on.
    pub own: Own,
    /// What the registry holds, the own node included.
    pub records: Vec<Record>,
    /// What the operator set.
    pub settings: Settings,
    /// The largest packet that gets from here to an address of the underlay, in bytes, where that is known to be
    /// less than the link's MTU.
    pub paths: BTreeMap<IpAddr, u32>,
}

/// What this daemon knows of its own node without the registry.
#[derive(Debug, Clone)]
pub struct Own {
    /// The own Node's name.
    pub name: String,
    /// The own public key.
    pub public_key: PublicKey,
    /// The epoch of that key.
    pub epoch: u64,
    /// The UDP port of the first lane.
    pub port: u16,
    /// What carries the tunnels.
    pub backend: Backend,
    /// Why WireGuard in the kernel does not, where it was to.
    pub fallback: Option<String>,
    /// How many lanes to serve, at least 1.
    pub lanes: u8,
    /// Every address on an interface that is not Warren's.
    pub local_addresses: Vec<LocalAddress>,
}

/// An address on an interface of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address, with the prefix of its link's subnet.
    pub net: IpNet,
    /// The link's number.
    pub link: u32,
    /// The link's MTU, in bytes.
    pub mtu: u32,
}

impl Own {
    /// Whether an address is on an interface of this node.
    pub fn has(&self, address: IpAddr) -> bool {
        self.local_addresses.iter().any(|local| local.net.addr() == address)
    }
}

/// What the operator set.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether the guard drops or only counts.
    pub enforcement: Enforcement,
    /// All pods of the cluster are inside these, where known: then an address of them that belongs to no
    /// node yet is guarded, too, and nothing outside them is believed to be a pod.
    pub cluster_cidrs: Vec<IpNet>,
    /// All nodes are inside these, where known: no endpoint outside is believed.
    pub node_cidrs: Vec<IpNet>,
    /// The cluster's service addresses, as far as they are known: no node and no pod has one.
    pub service_cidrs: Vec<IpNet>,
    /// Where the API server is: no pod has such an address, and a node only if it is of the control plane.
    pub api_servers: Vec<IpAddr>,
    /// Encrypt what nodes' own programs send each other, too.
    pub encrypt_host: bool,
    /// What is Warren's of what others on the node use, too.
    pub numbers: Numbers,
    /// Leave the mesh: send nothing through tunnels, announce nothing, and go once nobody else announces.
    pub withdraw: bool,
}

impl Settings {
    /// Whether a network may be pods', as far as the operator said. Who named only networks of one address
    /// family said nothing of the other.
    pub fn may_be_pods(&self, net: &IpNet) -> bool {
        within(&self.cluster_cidrs, net)
    }

    /// Whether an address may be a node's, as far as the operator said; likewise.
    pub fn may_be_node(&self, address: &IpAddr) -> bool {
        within(&self.node_cidrs, &IpNet::from(*address))
    }
}

/// Whether a network is inside one of `ranges`, or these say nothing of its address family.
fn within(ranges: &[IpNet], net: &IpNet) -> bool {
    let mut same = ranges.iter().filter(|range| Family::from(*range) == Family::from(net)).peekable();
    same.peek().is_none() || same.any(|range| range.contains(net))
}

/// One entry of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A Node that could be read.
    Node(Arc<NodeRecord>),
    /// An entry that could not be read, by the name the operator will look for.
    Unreadable {
        /// The node's name where it was known before, else the file's name.
        name: String,
        /// Why, for a human.
        reason: String,
    },
}

/// A Node, with its texts parsed where that was possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// The name.
    pub name: String,
    /// The UID; empty where the registry has none.
    pub uid: String,
    /// The pod CIDRs that the registry gave the node, host bits cleared.
    pub pod_cidrs: Vec<IpNet>,
    /// The node's InternalIPs.
    pub addresses: Vec<IpAddr>,
    /// What the node announces, if it does.
    pub announcement: Option<Result<Announcement, AnnouncementError>>,
    /// Texts of the Node that should be addresses or CIDRs and are not.
    pub malformed: Vec<String>,
    /// Why an operator wants nobody to obey this node, if one does.
    pub quarantine: Option<String>,
    /// Whether the registry has it as a node of the control plane.
    pub control_plane: bool,
    /// Whether an operator left its own programs out of `--encrypt-host`.
    pub host_left_out: bool,
}

impl From<&Node> for NodeRecord {
    fn from(node: &Node) -> Self {
        let mut malformed = Vec::new();
        let mut pod_cidrs = Vec::new();
        for text in node.pod_cidrs() {
            match text.parse::<IpNet>() {
                Ok(net) => pod_cidrs.push(net.trunc()),
                Err(_) => malformed.push(format!("pod CIDR {text:?} is no CIDR")),
            }
        }
        let mut addresses = Vec::new();
        for text in node.internal_ips() {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => malformed.push(format!("InternalIP {text:?} is no IP address")),
            }
        }
        let announcement =
            node.metadata.annotations.get(annotations::ANNOUNCEMENT).map(|json| Announcement::parse(json));
        Self {
            name: node.metadata.name.clone(),
            uid: node.metadata.uid.clone(),
            pod_cidrs,
            addresses,
            announcement,
            malformed,
            quarantine: node.metadata.annotations.get(annotations::QUARANTINE).cloned(),
            control_plane: node.metadata.is_control_plane(),
            host_left_out: node.metadata.is_host_left_out(),
        }
    }
}
