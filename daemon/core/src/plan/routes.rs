//! Routes and rules: which packets go through tunnels, and which go nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use warren_api::names;
use warren_api::status::Enforcement;

use super::MIN_MTU;
use super::lanes::Lanes;
use crate::claims::{Local, Peer};
use crate::desired::{Family, Port, Route, RouteKind, Rule};
use crate::nets;
use crate::numbers::Numbers;
use crate::snapshot::{NodeRecord, Settings};

/// What WireGuard adds to a packet: IP header, UDP header (8), message header (16), tag (16).
/// Source: WireGuard whitepaper, section 5.4.6.
const OVERHEAD_V4: u32 = 60;
const OVERHEAD_V6: u32 = 80;

/// The smallest packet that every IPv4 link carries in one piece or not at all (RFC 791: 576 bytes must be
/// accepted): an announced MTU below is no sense's.
const LEAST_MTU_V4: u32 = 576;

/// What WireGuard adds to packets to this address, in bytes.
pub fn overhead(endpoint: IpAddr) -> u32 {
    if endpoint.is_ipv6() { OVERHEAD_V6 } else { OVERHEAD_V4 }
}

/// The least that a route may say, whatever a peer announces and routers tell. What does not fit the path then
/// is fragmented outside of the tunnel.
fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => LEAST_MTU_V4,
        Family::V6 => MIN_MTU,
    }
}

/// WireGuard fills what it encrypts up to a multiple of this many bytes, but not beyond the MTU it knows (whitepaper,
/// section 5.4.6). The kernel's knows that of the route, one in userspace only that of its interface: what a route
/// says is a multiple itself, or the largest packets would not fit once they are filled up.
const PADDING: u32 = 16;

/// What packets take to other nodes.
pub(super) struct Ways<'a> {
    pub local: &'a Local<'a>,
    pub lanes: &'a Lanes<'a>,
    /// The largest packet that gets to an address of the underlay, where that is less than the link's MTU.
    pub paths: &'a BTreeMap<IpAddr, u32>,
    /// The tunnels' MTU.
    pub mtu: u32,
    pub numbers: Numbers,
}

impl Ways<'_> {
    fn through(&self, peer: &Peer, table: u32, destination: IpNet, source: Option<IpAddr>) -> Route {
        let mtu = self.mtu(peer, Family::from(&destination));
        let kind = RouteKind::Tunnel { interfaces: self.lanes.towards(peer), source, mtu };
        Route { table, destination, metric: names::TUNNEL_METRIC, kind }
    }

    /// The largest packet that gets to a peer: what its own tunnels take, and what the path between leaves.
    fn mtu(&self, peer: &Peer, family: Family) -> Option<u32> {
        let address = peer.endpoint.ip();
        let path = self.paths.get(&address).map(|path| path.saturating_sub(overhead(address)));
        let least = path.map_or(peer.mtu, |path| path.min(peer.mtu)).max(least_mtu(family));
        (least < self.mtu).then_some(least - least % PADDING)
    }
}

fn unreachable(table: u32, destination: IpNet) -> Route {
    Route { table, destination, metric: names::UNREACHABLE_METRIC, kind: RouteKind::Unreachable }
}

/// What stands whether there is a tunnel or not. In strict mode an unreachable route stands below every tunnel's,
/// so that packets drop where the tunnel or its interface is gone.
pub(super) fn blocks(blocked: &[IpNet], settings: &Settings) -> Vec<Route> {
    let strict = settings.enforcement == Enforcement::Strict;
    let table = settings.numbers.pods_table();
    blocked.iter().filter(|_| strict).map(|net| unreachable(table, *net)).collect()
}

/// The routes through tunnels to pods and, for what pods send, to nodes. Towards the addresses of nodes without a
/// tunnel nothing is unreachable: such a packet may lawfully leave with this node's address (masqueraded), and if it
/// still has a pod's address, the guard drops it.
pub(super) fn to_pods(ways: &Ways<'_>, peers: &[Peer], enforcement: Enforcement) -> Vec<Route> {
    let strict = enforcement == Enforcement::Strict;
    let own = &ways.local.pod_cidrs;
    let mut routes = Vec::new();
    for peer in peers {
        for cidr in &peer.pod_cidrs {
            let source = own.iter().find(|own| Family::from(*own) == Family::from(cidr));
            routes.push(ways.through(peer, ways.numbers.pods_table(), *cidr, source.map(IpNet::network)));
        }
        for address in peer.addresses.iter().copied().map(nets::host) {
            if own.iter().any(|own| Family::from(own) == Family::from(&address)) {
                routes.push(ways.through(peer, ways.numbers.nodes_table(), address, None));
                routes.extend(strict.then(|| unreachable(ways.numbers.nodes_table(), address)));
            }
        }
    }
    routes
}

/// The routes for what this node's own programs send to nodes, from the address the other end knows.
pub(super) fn to_hosts(ways: &Ways<'_>, peers: &[&Peer], enforcement: Enforcement) -> Vec<Route> {
    let strict = enforcement == Enforcement::Strict;
    let mut routes = Vec::new();
    for peer in peers {
        for address in &peer.addresses {
            let mut own = ways.local.endpoints.iter().copied();
            let Some(source) = own.find(|own| own.is_ipv4() == address.is_ipv4()) else { continue };
            let destination = nets::host(*address);
            routes.push(ways.through(peer, ways.numbers.hosts_table(), destination, Some(source)));
            routes.extend(strict.then(|| unreachable(ways.numbers.hosts_table(), destination)));
        }
    }
    routes
}

/// The rules that lead to pods and, for what pods send, to nodes.
pub(super) fn rules(local: &Local<'_>, blocked: &[IpNet], numbers: Numbers) -> impl Iterator<Item = Rule> {
    let families: BTreeSet<Family> = blocked.iter().chain(&local.pod_cidrs).map(Family::from).collect();
    let pods =
        families.into_iter().map(move |family| Rule::new(family, numbers.pods_rule(), numbers.pods_table()));
    let nodes = local.pod_cidrs.iter().map(move |cidr| Rule {
        source: Some(*cidr),
        ..Rule::new(Family::from(cidr), numbers.nodes_rule(), numbers.nodes_table())
    });
    pods.chain(nodes)
}

/// The rules that lead what this node's own programs send to nodes, past what is exempt: the tunnels' own packets,
/// by their mark, and what goes to or comes from the API server.
pub(super) fn host_rules(
    local: &Local<'_>,
    own: Option<&NodeRecord>,
    settings: &Settings,
) -> impl Iterator<Item = Rule> {
    let numbers = settings.numbers;
    let families: BTreeSet<Family> =
        local.endpoints.iter().map(|own| Family::from(&nets::host(*own))).collect();
    let hosts = families.into_iter().map(move |family| Rule {
        unmarked: Some(numbers.mark),
        ..Rule::new(family, numbers.hosts_rule(), numbers.hosts_table())
    });
    let exempt = move |address: IpAddr| {
        Rule::new(Family::from(&nets::host(address)), numbers.exempt_rule(), names::MAIN_TABLE)
    };
    let port = numbers.api_server_port;
    let to = settings.api_servers.iter().filter(|server| !local.own.has(**server)).map(move |server| Rule {
        destination: Some(nets::host(*server)),
        port: Some(Port::Destination(port)),
        ..exempt(*server)
    });
    let serves = own.is_some_and(|own| own.control_plane);
    let servers = local.endpoints.iter().filter(move |own| serves || settings.api_servers.contains(own));
    let from = servers.map(move |server| Rule {
        source: Some(nets::host(*server)),
        port: Some(Port::Source(port)),
        ..exempt(*server)
    });
    hosts.chain(to).chain(from)
}
