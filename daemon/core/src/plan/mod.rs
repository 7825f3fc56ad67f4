//! From a [`Snapshot`] to what should be on this node.

mod lanes;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_api::announcement::{self, Announcement, EpochKey};
use warren_api::status::{Enforcement, Quarantined};
use warren_api::{Backend, PublicKey};

use crate::claims::{self, Judgement, Local, Peer};
use crate::desired::{Desired, Guard, RouteKind};
use crate::nets;
use crate::snapshot::{NodeRecord, Own, Record, Settings, Snapshot};
use lanes::Lanes;
use routes::Ways;
pub use routes::overhead;

/// Seconds between keepalives: WireGuard's customary value, below the 30 s after which common NATs and
/// firewalls forget a UDP flow. It also proves every pair by a handshake before any pod needs it.
pub const KEEPALIVE: u16 = 25;

/// The smallest MTU that IPv6 runs on (RFC 8200, section 5).
const MIN_MTU: u32 = 1280;

/// What should be, and what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What should be on this node.
    pub desired: Desired,
    /// What this node should publish; absent while the registry does not know it.
    pub announcement: Option<Announcement>,
    /// How far this node has left the mesh.
    pub withdrawal: Withdrawal,
    /// Who stands behind each key of the tunnel.
    pub peers: BTreeMap<PublicKey, PeerInfo>,
    /// Who is not obeyed, and why.
    pub quarantined: Vec<Quarantined>,
    /// Who has announced nothing yet.
    pub waiting: Vec<String>,
    /// What keeps this node from being ready, for a human.
    pub problems: Vec<String>,
    /// Remove nothing: what the registry says of this node itself is not known, so nothing that stands may
    /// be taken for superfluous.
    pub hold: bool,
}

/// How far a node has left the mesh.
///
/// In permissive mode, where clear text passes everywhere, nothing is lost on the way: first the node sends
/// nothing through tunnels any more and takes its announcement back, so that all others stop, too; what they
/// still send through tunnels arrives. Once nobody else announces anything, nobody sends through tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Withdrawal {
    /// It is in the mesh.
    #[default]
    None,
    /// It only receives.
    Leaving,
    /// Nothing of Warren's is needed on it.
    Done,
}

/// Who stands behind a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The node's name.
    pub node: String,
    /// What carries its end.
    pub backend: Backend,
}

/// What stands on the node now, as far as it can be read, and bears on what should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// What the kernel holds of guard and `unreachable` routes.
    pub guard: Guard,
    /// The peers whose sessions live, by the interface of the lane.
    pub alive: BTreeMap<Arc<str>, BTreeSet<PublicKey>>,
}

/// Makes the plan.
///
/// What was another node's, its pods' networks and its addresses, stays guarded when the node vanishes from the
/// registry: it may go on running, or only its entry may be away or garbled for a moment. It is let go when
/// this node gets it, and where `--cluster-cidrs` says that a network is no pods'.
pub fn plan(snapshot: &Snapshot, standing: &Standing) -> Plan {
    let Snapshot { own, records, settings, paths } = snapshot;
    let Standing { guard: standing, alive } = standing;
    let mut problems = Vec::new();
    let Sorted { own_record, others, disputed, mut quarantined } = sort(&own.name, records);
    if own_record.is_none() {
        problems.push(format!("the registry holds no readable Node {:?}: is --node right?", own.name));
    }
    let local = locate(own, own_record, standing, &mut problems);
    let known: Vec<&NodeRecord> = others.iter().chain(&disputed).copied().collect();
    let settings = &sound(settings, &local, &known, &standing.remote_pods, &mut problems);
    let servers: Vec<IpNet> = nets::cover(settings.api_servers.iter().copied().map(nets::host));
    let retained = standing.remote_pods.iter().filter(|net| settings.may_be_pods(net));
    let retained: Vec<IpNet> =
        retained.flat_map(|net| nets::exclude(*net, nets::touching(&servers, net))).collect();
    let Judgement { peers, quarantined: refused, waiting } =
        claims::judge(&local, &others, settings, &retained);
    quarantined.extend(refused);
    quarantined.sort();

    let blocked = blocked(&local, &known, &peers, settings, &retained);
    let usable = own_record.is_some() && !local.pod_cidrs.is_empty() && !local.endpoints.is_empty();
    let encrypts_host = settings.encrypt_host && own_record.is_some_and(|own| !own.host_left_out);
    let hosts: Vec<&Peer> = peers.iter().filter(|peer| encrypts_host && peer.encrypts_host).collect();
    let mtu = mtu(&local);
    if usable && mtu < MIN_MTU {
        problems.push(format!("the tunnels' MTU would be {mtu} bytes; IPv6 wants {MIN_MTU}"));
    }
    let lanes = Lanes::new(own, alive);
    // Also those that are not believed here may send to this node.
    let announced = others.iter().any(|node| node.announcement.is_some() && node.quarantine.is_none())
        || own_record.is_some_and(|own| own.announcement.is_some());
    let withdrawal = withdrawal(settings, usable && !announced, &mut problems);
    if withdrawal == Withdrawal::Done {
        let desired = Desired::default();
        return Plan {
            desired,
            announcement: None,
            withdrawal,
            peers: BTreeMap::new(),
            quarantined,
            waiting,
            problems,
            hold: false,
        };
    }
    let mut routes = routes::blocks(&blocked, settings);
    let mut rules: BTreeSet<_> = routes::rules(&local, &blocked, settings.numbers).collect();
    let mut tunnels = BTreeMap::new();
    if usable {
        let ways = Ways { local: &local, lanes: &lanes, paths, mtu, numbers: settings.numbers };
        routes.extend(routes::to_pods(&ways, &peers, settings.enforcement));
        routes.extend(routes::to_hosts(&ways, &hosts, settings.enforcement));
        // Marked also without `--encrypt-host`: whenever it is switched on or off, the rules that ask for the mark
        // come before the tunnels' change or go after it.
        tunnels = lanes.tunnels(&local, &peers, mtu, settings.numbers.mark);
    }
    if encrypts_host {
        rules.extend(routes::host_rules(&local, own_record, settings));
    }
    let underlay = local
        .own
        .local_addresses
        .iter()
        .filter(|address| encrypts_host && local.endpoints.contains(&address.net.addr()));
    let mut desired = Desired {
        loose: underlay.filter(|address| address.net.addr().is_ipv4()).map(|address| address.link).collect(),
        // A set is made fastest of all its elements at once.
        routes: routes.into_iter().collect(),
        rules,
        guard: Some(Guard {
            enforcement: settings.enforcement,
            local_pods: local.pod_cidrs.iter().copied().collect(),
            remote_nodes: remote_nodes(&local, &known, &standing.remote_nodes, settings),
            remote_pods: blocked.into_iter().collect(),
            hosts: hosts.iter().flat_map(|peer| &peer.addresses).copied().map(nets::host).collect(),
        }),
        tunnels,
    };
    let mut announcement = usable.then(|| announce(&local, own_record, mtu, encrypts_host));
    if withdrawal == Withdrawal::Leaving {
        desired.routes.retain(|route| !matches!(route.kind, RouteKind::Tunnel { .. }));
        announcement = None;
    }
    Plan {
        withdrawal,
        announcement,
        peers: peers
            .into_iter()
            .map(|peer| (peer.public_key, PeerInfo { node: peer.name, backend: peer.backend }))
            .collect(),
        desired,
        quarantined,
        waiting,
        problems,
        hold: !usable,
    }
}

/// A strict node goes on refusing clear text, which those that left send; so it does not leave itself.
/// `alone`: nobody announces anything, this node included.
fn withdrawal(settings: &Settings, alone: bool, problems: &mut Vec<String>) -> Withdrawal {
    match (settings.withdraw, settings.enforcement) {
        (false, _) => Withdrawal::None,
        (true, Enforcement::Strict) => {
            problems.push("withdraw needs enforcement permissive, on all nodes, before".to_owned());
            Withdrawal::None
        }
        (true, Enforcement::Permissive) if alone => Withdrawal::Done,
        (true, Enforcement::Permissive) => Withdrawal::Leaving,
    }
}

/// The records, told apart.
struct Sorted<'a> {
    own_record: Option<&'a NodeRecord>,
    /// All other nodes that stand there once.
    others: Vec<&'a NodeRecord>,
    /// All entries of other nodes that stand there more than once: nobody is obeyed, everything is blocked.
    disputed: Vec<&'a NodeRecord>,
    /// Those that cannot be read, or that claim one name.
    quarantined: Vec<Quarantined>,
}

fn sort<'a>(own: &str, records: &'a [Record]) -> Sorted<'a> {
    let mut quarantined = Vec::new();
    let mut by_name: BTreeMap<&str, Vec<&NodeRecord>> = BTreeMap::new();
    for record in records {
        match record {
            Record::Node(node) => by_name.entry(&node.name).or_default().push(node),
            Record::Unreadable { name, reason } => {
                quarantined.push(Quarantined { node: name.clone(), reason: reason.clone() });
            }
        }
    }
    let (mut unique, mut disputed) = (Vec::new(), Vec::new());
    for (name, nodes) in by_name {
        if let [node] = nodes[..] {
            unique.push(node);
        } else {
            let reason = format!("stands in the registry {} times", nodes.len());
            quarantined.push(Quarantined { node: name.to_owned(), reason });
            disputed.extend(nodes.into_iter().filter(|_| name != own));
        }
    }
    let (own_record, others): (Vec<_>, Vec<_>) = unique.into_iter().partition(|node| node.name == own);
    Sorted { own_record: own_record.first().copied(), others, disputed, quarantined }
}

/// The settings, less what cannot be meant and would open the guard, and with what the registry adds: nodes of the
/// control plane run the API server, and in a pod the daemon knows only its service's address. `standing` are the
/// networks that are guarded now.
fn sound(
    settings: &Settings,
    local: &Local<'_>,
    others: &[&NodeRecord],
    standing: &BTreeSet<IpNet>,
    problems: &mut Vec<String>,
) -> Settings {
    let mut sound = settings.clone();
    let pods = |range: &IpNet| {
        let nodes = others.iter().filter(|node| node.announcement.is_some());
        let overlapping = nodes.filter(|node| node.pod_cidrs.iter().any(|cidr| nets::overlap(cidr, range)));
        local.pod_cidrs.iter().any(|own| nets::overlap(own, range))
            || settings.cluster_cidrs.iter().any(|cluster| range.contains(cluster))
            // One node may lie. That two do is less likely than a slip, which must not unguard them.
            || overlapping.take(2).count() == 2
    };
    sound.service_cidrs.retain(|range| {
        let pods = pods(range);
        if pods {
            problems.push(format!("--service-cidrs {range} is ignored: it holds pods; is it mistyped?"));
        }
        !pods
    });
    // A label and an address are a claim. It must not open the guard of a pod, so it is believed only where nodes'
    // addresses are; where there are pods' among these, only if it is in no node's pods and was not.
    let (mixed, apart): (Vec<IpNet>, Vec<IpNet>) =
        claims::node_ranges(local, settings).into_iter().partition(&pods);
    let own_pods = nets::cover(settings.cluster_cidrs.iter().chain(&local.pod_cidrs).copied());
    let theirs = others.iter().flat_map(|node| &node.pod_cidrs).filter(|cidr| !claims::too_wide(cidr));
    let theirs = nets::cover(theirs.chain(standing).copied());
    let within = |ranges: &[IpNet], address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let is_nodes = |address: &&IpAddr| {
        nets::find(&own_pods, **address).is_none()
            && (within(&apart, address)
                || within(&mixed, address) && nets::find(&theirs, **address).is_none())
    };
    let control_plane = others.iter().filter(|node| node.control_plane && node.quarantine.is_none());
    let servers = control_plane.flat_map(|node| &node.addresses).filter(is_nodes);
    sound.api_servers.extend(servers);
    sound
}

/// Brings together what the registry and the interfaces say of this node. Without its Node in the registry,
/// the guard still knows which pods are this node's.
fn locate<'a>(
    own: &'a Own,
    record: Option<&NodeRecord>,
    standing: &Guard,
    problems: &mut Vec<String>,
) -> Local<'a> {
    let pod_cidrs = standing.local_pods.iter().copied().collect();
    let mut local = Local { own, pod_cidrs, endpoints: Vec::new() };
    let Some(record) = record else { return local };
    problems.extend(record.malformed.iter().map(|what| format!("this Node's manifest: {what}")));
    local.pod_cidrs = nets::cover(record.pod_cidrs.iter().copied().filter(|cidr| !claims::too_wide(cidr)));
    local.endpoints = record.addresses.iter().copied().filter(|address| own.has(*address)).collect();
    if local.pod_cidrs.is_empty() {
        problems.push("the registry gave this node no pod CIDR (spec.podCIDRs)".to_owned());
    }
    if local.endpoints.is_empty() {
        problems.push(format!(
            "none of this Node's InternalIPs {:?} is on an interface of this machine",
            record.addresses
        ));
    }
    local
}

/// The networks that may be reached through a tunnel or not at all: the pods of all other nodes, peers or
/// not, without what is surely this node's own or the underlay's.
fn blocked(
    local: &Local<'_>,
    others: &[&NodeRecord],
    peers: &[Peer],
    settings: &Settings,
    retained: &[IpNet],
) -> Vec<IpNet> {
    // Without the own pod CIDRs, the cluster's would cut this node's own pods off.
    let cluster = settings.cluster_cidrs.iter().filter(|_| !local.pod_cidrs.is_empty());
    let claimed = others.iter().flat_map(|node| &node.pod_cidrs).filter(|cidr| !claims::too_wide(cidr));
    let claimed = nets::cover(claimed.chain(cluster).chain(retained).copied());

    // What is surely no pod's, also in part: a route or a set with it in would cut this node off.
    let mut holes = local.pod_cidrs.clone();
    holes.extend(settings.service_cidrs.iter().map(IpNet::trunc));
    holes.extend(settings.api_servers.iter().copied().map(nets::host));
    let sure = nets::cover(holes.iter().copied());
    // An address of a peer is in no network that is credibly pods'; it is in one that claims the underlay.
    holes.extend(peers.iter().flat_map(|peer| &peer.addresses).copied().map(nets::host));
    holes.extend(claims::underlay(local, settings));
    // The subnets of the underlay are holes only in what claims to hold them whole; pods' networks inside a
    // wide underlay subnet stay blocked, or the widest subnet would unguard them all.
    let inside = |hole: &IpNet| nets::find(&claimed, hole.addr()).is_some_and(|net| net.contains(hole));
    let holes = nets::cover(holes.into_iter().filter(|hole| inside(hole) || sure.contains(hole)));
    claimed.iter().flat_map(|net| nets::exclude(*net, nets::touching(&holes, net))).collect()
}

/// The underlay addresses of all other nodes. An address that is also this node's, or a pod's of this node,
/// is a lie that must not cut this node's own traffic.
fn remote_nodes(
    local: &Local<'_>,
    others: &[&NodeRecord],
    kept: &BTreeSet<IpNet>,
    settings: &Settings,
) -> BTreeSet<IpNet> {
    // A node that poses as a service or as the API server must not cut pods off these, nor one that once did.
    let is_service =
        |address: &IpAddr| settings.service_cidrs.iter().any(|services| services.contains(address));
    let is_server = |address: &IpAddr| settings.api_servers.contains(address);
    let kept = kept
        .iter()
        .map(IpNet::addr)
        .filter(|address| !is_service(address) && !is_server(address) && settings.may_be_node(address));
    let kept = kept.collect::<Vec<_>>();
    let poses = |node: &NodeRecord, address: &IpAddr| {
        !node.control_plane && is_server(address) || is_service(address)
    };
    let theirs = others.iter().flat_map(|node| node.addresses.iter().filter(|address| !poses(node, address)));
    let addresses = theirs.chain(&kept);
    let mine = |address: &IpAddr| {
        local.own.has(*address) || local.pod_cidrs.iter().any(|cidr| cidr.contains(address))
    };
    addresses.filter(|address| !mine(address)).copied().map(nets::host).collect()
}

/// The MTU inside the tunnel: the smallest of the links that carry an endpoint, less what WireGuard adds.
fn mtu(local: &Local<'_>) -> u32 {
    let links = local.own.local_addresses.iter();
    let links = links.filter(|link| local.endpoints.contains(&link.net.addr()));
    let link = links.map(|link| link.mtu).min().unwrap_or(1500);
    let overhead = local.endpoints.iter().copied().map(routes::overhead).max();
    link.saturating_sub(overhead.unwrap_or_default())
}

/// What this node should publish. Fields that a later version left on the own Node are kept.
fn announce(local: &Local<'_>, record: Option<&NodeRecord>, mtu: u32, encrypts_host: bool) -> Announcement {
    let before = record.and_then(|record| record.announcement.as_ref()?.as_ref().ok());
    Announcement {
        version: announcement::VERSION,
        node: local.own.name.clone(),
        uid: record.map(|record| record.uid.clone()).unwrap_or_default(),
        epochs: vec![EpochKey {
            epoch: local.own.epoch,
            public_key: local.own.public_key,
            port: local.own.port,
            lanes: local.own.lanes,
            unknown: before
                .and_then(|before| before.epoch(local.own.epoch))
                .map(|epoch| epoch.unknown.clone())
                .unwrap_or_default(),
        }],
        pod_cidrs: local.pod_cidrs.clone(),
        endpoints: local.endpoints.clone(),
        backend: local.own.backend,
        fallback: local.own.fallback.clone(),
        mtu,
        encrypts_host,
        unknown: before.map(|before| before.unknown.clone()).unwrap_or_default(),
    }
}
