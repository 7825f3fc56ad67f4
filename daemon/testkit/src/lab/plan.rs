//! Who has which address in a lab: pure arithmetic on the number of a node, from 1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The most nodes an underlay /24 has room for beside the attacker.
pub const MAX_NODES: usize = 240;

/// Which address families the underlay, or the pods, have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// Keeps of a pair (IPv4, IPv6) what these families have.
    fn select<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }
}

/// Where the nodes of a lab publish and watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registry {
    /// A directory of Node manifests.
    Directory,
    /// A Kubernetes API server, started with the lab.
    Kubernetes,
}

/// What a lab shall look like. The default: 3 nodes, 2 pods each, IPv4 and IPv6 outside and inside, MTU 1500,
/// a directory as registry.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The number of nodes, 1 to [`MAX_NODES`].
    pub nodes: usize,
    /// The number of pods on each node, 0 to 200.
    pub pods: usize,
    /// The families of the nodes' addresses.
    pub underlay: Families,
    /// The families of the pods' addresses.
    pub overlay: Families,
    /// The MTU of the underlay, in bytes; pods have the same, as they do before a CNI plugin lowers theirs.
    pub mtu: u32,
    /// Whether nodes masquerade what their pods send out of the cluster, as CNI plugins have them do.
    pub masquerade: bool,
    /// What the nodes have for a registry.
    pub registry: Registry,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 3,
            pods: 2,
            underlay: Families::Dual,
            overlay: Families::Dual,
            mtu: 1500,
            masquerade: true,
            registry: Registry::Directory,
        }
    }
}

impl Plan {
    /// The ranges that all pod CIDRs come from.
    pub fn cluster_cidrs(&self) -> Vec<IpNet> {
        self.overlay.select(cidr4([10, 244, 0, 0], 16), cidr6([0xfd00, 0x244, 0, 0], 32))
    }

    /// The ranges that all node addresses come from.
    pub fn node_cidrs(&self) -> Vec<IpNet> {
        self.underlay.select(cidr4([192, 0, 2, 0], 24), cidr6([0xfd77, 0, 0, 0], 64))
    }

    /// The pod CIDRs of node `number`.
    pub fn pod_cidrs(&self, number: usize) -> Vec<IpNet> {
        self.overlay
            .select(cidr4([10, 244, number as u8, 0], 24), cidr6([0xfd00, 0x244, number as u16, 0], 64))
    }

    /// The underlay addresses of node `number`: host number on the /24 and /64.
    pub fn node_ips(&self, number: usize) -> Vec<IpAddr> {
        self.node_cidrs().into_iter().map(|cidr| host(cidr, number)).collect()
    }

    /// The underlay addresses of the attacker.
    pub fn attacker_ips(&self) -> Vec<IpAddr> {
        self.node_ips(250)
    }

    /// The underlay addresses of the machine that the API server runs on.
    pub fn control_plane_ips(&self) -> Vec<IpAddr> {
        self.node_ips(251)
    }

    /// The addresses of pod `pod` (from 1) of node `number`: host number 10 + `pod`; 1 is the gateway.
    pub fn pod_ips(&self, number: usize, pod: usize) -> Vec<IpAddr> {
        self.pod_cidrs(number).into_iter().map(|cidr| host(cidr, 10 + pod)).collect()
    }

    /// Whether pods reach this address of another node's pod without Warren: Linux routes IPv4 over IPv6
    /// neighbours (RFC 8950), but not the other way round.
    pub fn has_clear_path(&self, pod_ip: IpAddr) -> bool {
        pod_ip.is_ipv4() || self.underlay != Families::V4
    }

    /// The addresses of the bridge of node `number`, which are its pods' gateways.
    pub fn gateways(&self, number: usize) -> Vec<IpAddr> {
        self.pod_cidrs(number).into_iter().map(|cidr| host(cidr, 1)).collect()
    }
}

/// The `number`th address of a network.
pub fn host(cidr: IpNet, number: usize) -> IpAddr {
    match cidr {
        IpNet::V4(cidr) => Ipv4Addr::from_bits(cidr.network().to_bits() + number as u32).into(),
        IpNet::V6(cidr) => Ipv6Addr::from_bits(cidr.network().to_bits() + number as u128).into(),
    }
}

fn cidr4(octets: [u8; 4], prefix: u8) -> IpNet {
    Ipv4Net::new_assert(octets.into(), prefix).into()
}

/// A prefix of at most 64 bits, given by its first four groups.
fn cidr6(groups: [u16; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = groups;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix).into()
}
