//! Which nodes are believed, and why the others are not.
//!
//! The registry is an input like any other: an announcement is a claim by whoever could write it. It is
//! checked against what the registry itself gave the node (name, UID, pod CIDRs, addresses), against this
//! node (own key, addresses, pods, underlay) and against every other node (keys, CIDRs, addresses). A claim
//! that fails is quarantined: nothing is built on it, and its node's pods stay blocked.
//!
//! Where two claims contradict each other and nothing tells which is true, neither is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_api::announcement::EpochKey;
use warren_api::status::Quarantined;
use warren_api::{Announcement, Backend, PublicKey};

use crate::nets::{self, overlap};
use crate::{NodeRecord, Own, Settings};

/// The shortest prefixes that are believed to be one node's pods. Kubernetes gives a node /24 and /64 by
/// default and never more than a cluster CIDR; anything wider would swallow the world.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;

/// The own node as the registry and its interfaces agree on it.
#[derive(Debug, Clone)]
pub struct Local<'a> {
    /// What the daemon knows.
    pub own: &'a Own,
    /// The pod CIDRs the registry gave the own node.
    pub pod_cidrs: Vec<IpNet>,
    /// The own InternalIPs that are on an interface.
    pub endpoints: Vec<IpAddr>,
}

/// A node whose claims hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// What carries its end of the tunnel.
    pub backend: Backend,
    /// Its key in this node's epoch.
    pub public_key: PublicKey,
    /// Where its first lane is reached; lane i is at port + i.
    pub endpoint: SocketAddr,
    /// How many lanes it serves, at least 1.
    pub lanes: u8,
    /// The MTU inside its tunnels, in bytes.
    pub mtu: u32,
    /// Whether it wants what its own programs send to this node encrypted, too.
    pub encrypts_host: bool,
    /// Its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Its underlay addresses, as far as they are where nodes' addresses are believed to be.
    pub addresses: BTreeSet<IpAddr>,
}

/// What was found of all nodes but the own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Those to build tunnels to.
    pub peers: Vec<Peer>,
    /// Those not to be obeyed, and why.
    pub quarantined: Vec<Quarantined>,
    /// Those that announced nothing yet.
    pub waiting: Vec<String>,
}

/// Why a node is no peer.
enum Refusal {
    /// It said nothing yet.
    Waiting,
    /// It said something that is not believed.
    Quarantine(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Quarantine(reason)
    }
}

/// Judges all `others`, which are all nodes but the own. `retained` are networks that were pods' and may
/// still be.
pub fn judge(
    local: &Local<'_>,
    others: &[&NodeRecord],
    settings: &Settings,
    retained: &[IpNet],
) -> Judgement {
    let court = Court::new(local, others, settings, retained);
    let mut judgement = Judgement::default();
    for node in others {
        match court.try_node(node) {
            Ok(peer) => judgement.peers.push(peer),
            Err(Refusal::Waiting) => judgement.waiting.push(node.name.clone()),
            Err(Refusal::Quarantine(reason)) => {
                judgement.quarantined.push(Quarantined { node: node.name.clone(), reason });
            }
        }
    }
    judgement
}

/// Whether a pod CIDR claims what is surely not a pod's: this node's addresses or the underlay.
/// Such a CIDR is no reason to doubt the nodes whose addresses it covers.
fn covers_underlay(cidr: &IpNet, underlay: &[IpNet], settings: &Settings) -> bool {
    underlay.iter().any(|net| cidr.contains(net)) || settings.node_cidrs.iter().any(|net| overlap(net, cidr))
}

/// What a pod CIDR claims of the cluster's services or of the API server, which are no pod's.
fn covers_services(cidr: &IpNet, settings: &Settings) -> Option<String> {
    if let Some(services) = settings.service_cidrs.iter().find(|services| overlap(services, cidr)) {
        return Some(format!("overlaps the cluster's service addresses {services}"));
    }
    let server = settings.api_servers.iter().find(|server| cidr.contains(*server))?;
    Some(format!("holds the API server's address {server}"))
}

/// This node's addresses, and the subnets in which its endpoints stand.
pub fn underlay(local: &Local<'_>, settings: &Settings) -> Vec<IpNet> {
    let hosts = local.own.local_addresses.iter().map(|local| nets::host(local.net.addr()));
    let hosts = hosts.filter(|host| !local.pod_cidrs.iter().any(|cidr| cidr.contains(host)));
    subnets(local).chain(hosts).chain(settings.node_cidrs.iter().copied()).collect()
}

/// The subnets in which this node's endpoints stand.
fn subnets(local: &Local<'_>) -> impl Iterator<Item = IpNet> {
    let links = local.own.local_addresses.iter().map(|local| local.net);
    // Without the own Node nobody says which link is the underlay's: then each may be.
    let is_endpoint = |net: &IpNet| local.endpoints.is_empty() || local.endpoints.contains(&net.addr());
    links.filter(is_endpoint).map(|net| net.trunc())
}

/// Where nodes' addresses are believed to be: what the operator said, else the subnets this node is in.
pub fn node_ranges(local: &Local<'_>, settings: &Settings) -> Vec<IpNet> {
    if !settings.node_cidrs.is_empty() {
        return settings.node_cidrs.clone();
    }
    subnets(local).collect()
}

/// Whether a CIDR is too wide to be one node's pods.
pub fn too_wide(cidr: &IpNet) -> bool {
    cidr.prefix_len() < if matches!(cidr, IpNet::V4(_)) { WIDEST_V4 } else { WIDEST_V6 }
}

/// Whether an address can be a node's at all.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_loopback()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_link_local())
        }
        IpAddr::V6(a) => {
            !(a.is_loopback()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some())
        }
    }
}

/// Who claims what, sorted.
struct Claims<'a, K>(Vec<(K, &'a str)>);

impl<'a, K: Ord> Claims<'a, K> {
    fn new(mut claims: Vec<(K, &'a str)>) -> Self {
        claims.sort_unstable();
        Self(claims)
    }

    /// Who but `name` claims `what`.
    fn other(&self, what: &K, name: &str) -> Option<&'a str> {
        let from = self.0.partition_point(|(claimed, _)| claimed < what);
        let claims = self.0[from..].iter().take_while(|(claimed, _)| claimed == what);
        claims.map(|(_, claimant)| *claimant).find(|claimant| *claimant != name)
    }
}

/// What has to be known of all nodes to judge one.
struct Court<'a> {
    local: &'a Local<'a>,
    settings: &'a Settings,
    /// This node's addresses, and the subnets in which its endpoints stand.
    underlay: Vec<IpNet>,
    /// Where nodes' addresses are believed to be.
    ranges: Vec<IpNet>,
    /// Who announces each key, among those whose announcement is at least their own.
    keys: Claims<'a, PublicKey>,
    /// Which nodes have each address in the registry.
    addresses: Claims<'a, IpAddr>,
    /// Which nodes' CIDRs overlap with another node's, and whose.
    overlaps: BTreeMap<&'a str, (IpNet, &'a str, IpNet)>,
    /// Which nodes' CIDRs hold a credible address of another node, and whose.
    contested: BTreeMap<&'a str, (IpNet, &'a str, IpAddr)>,
    /// Networks that were pods' and may still be, without those that another one holds.
    retained: Vec<IpNet>,
    /// All pods' networks, as far as what this node knows of itself does not refute them.
    pods: Vec<IpNet>,
}

impl<'a> Court<'a> {
    fn new(
        local: &'a Local<'a>,
        others: &[&'a NodeRecord],
        settings: &'a Settings,
        retained: &'a [IpNet],
    ) -> Self {
        let underlay = underlay(local, settings);
        let (mut keys, mut addresses) = (Vec::new(), Vec::new());
        let mut cidrs = Vec::new();
        for node in others {
            // Nor what an operator refuted.
            let heard = node.quarantine.is_none();
            let theirs = node.addresses.iter().filter(|_| heard);
            addresses.extend(theirs.map(|address| (*address, node.name.as_str())));
            // What is refuted by the Node it stands on must not cast doubt on others.
            let own_words = node
                .announcement
                .iter()
                .flatten()
                .filter(|_| heard)
                .filter(|claim| is_own(node, claim).is_ok() && foreign_endpoint(node, claim).is_none());
            let epochs = own_words.flat_map(|announcement| &announcement.epochs);
            keys.extend(epochs.map(|epoch| (epoch.public_key, node.name.as_str())));
            let sound = |cidr: &&IpNet| {
                !too_wide(cidr)
                    && !covers_underlay(cidr, &underlay, settings)
                    && covers_services(cidr, settings).is_none()
                    && !local.pod_cidrs.iter().any(|own| overlap(own, cidr))
            };
            cidrs.extend(node.pod_cidrs.iter().filter(sound).map(|cidr| (*cidr, node.name.as_str())));
        }
        let pods = nets::cover(cidrs.iter().map(|(cidr, _)| *cidr).chain(local.pod_cidrs.iter().copied()));
        let ranges = node_ranges(local, settings);
        let credible = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
        let addresses = Claims::new(addresses);
        cidrs.sort_by_key(|(net, name)| (net.network(), net.prefix_len(), *name));
        let mut contested = BTreeMap::new();
        for (address, name) in addresses.0.iter().filter(|(address, _)| credible(address)) {
            let Some(pods) = nets::find(&pods, *address) else { continue };
            let from = cidrs.partition_point(|(cidr, _)| cidr.network() < pods.network());
            let near = cidrs[from..].iter().take_while(|(cidr, _)| cidr.network() <= *address);
            for (cidr, holder) in near.filter(|(cidr, holder)| cidr.contains(address) && holder != name) {
                contested.entry(*holder).or_insert((*cidr, *name, *address));
            }
        }
        Self {
            local,
            settings,
            underlay,
            ranges,
            keys: Claims::new(keys),
            addresses,
            overlaps: overlaps(&cidrs),
            contested,
            retained: nets::cover(retained.iter().copied()),
            pods,
        }
    }

    fn try_node(&self, node: &NodeRecord) -> Result<Peer, Refusal> {
        if let Some(malformed) = node.malformed.first() {
            return Err(malformed.clone().into());
        }
        if let Some(reason) = &node.quarantine {
            return Err(format!("quarantined by an operator: {reason:?}").into());
        }
        self.try_pod_cidrs(node)?;
        let announcement = match &node.announcement {
            None => return Err(Refusal::Waiting),
            Some(Err(error)) => return Err(error.to_string().into()),
            Some(Ok(announcement)) => announcement,
        };
        let epoch = self.try_identity(node, announcement)?;
        let foreign =
            announcement.pod_cidrs.iter().find(|cidr| !node.pod_cidrs.iter().any(|own| own.contains(*cidr)));
        if let Some(cidr) = foreign {
            return Err(format!("announces the pod CIDR {cidr}, which the registry did not give it").into());
        }
        let endpoint = self.try_endpoints(node, announcement)?;
        Ok(Peer {
            name: node.name.clone(),
            backend: announcement.backend,
            public_key: epoch.public_key,
            endpoint: SocketAddr::new(endpoint, epoch.port),
            lanes: epoch.lanes,
            mtu: announcement.mtu,
            encrypts_host: announcement.encrypts_host && !node.host_left_out,
            pod_cidrs: announcement.pod_cidrs.iter().map(IpNet::trunc).collect(),
            // Others may be real, too, but nothing tells; nothing is routed there.
            addresses: node.addresses.iter().filter(|a| self.is_credible(a)).copied().collect(),
        })
    }

    /// The pod CIDRs that the registry gave the node: sound, not this node's, not the underlay's.
    fn try_pod_cidrs(&self, node: &NodeRecord) -> Result<(), String> {
        for cidr in &node.pod_cidrs {
            if too_wide(cidr) {
                return Err(format!("its pod CIDR {cidr} is too wide for one node, so it is not guarded"));
            }
            if let Some(own) = self.local.pod_cidrs.iter().find(|own| overlap(own, cidr)) {
                return Err(format!("its pod CIDR {cidr} overlaps this node's {own}"));
            }
            if covers_underlay(cidr, &self.underlay, self.settings) {
                return Err(format!("its pod CIDR {cidr} covers this node's address or the underlay"));
            }
            if let Some(what) = covers_services(cidr, self.settings) {
                return Err(format!("its pod CIDR {cidr} {what}"));
            }
            if !self.settings.may_be_pods(cidr) {
                return Err(format!("its pod CIDR {cidr} is outside --cluster-cidrs"));
            }
        }
        if let Some((cidr, other, address)) = self.contested.get(node.name.as_str()) {
            return Err(format!("its pod CIDR {cidr} holds the address {address} of node {other:?}"));
        }
        match self.overlaps.get(node.name.as_str()) {
            Some((cidr, other, others)) => {
                Err(format!("its pod CIDR {cidr} overlaps {others} of node {other:?}"))
            }
            None => Ok(()),
        }
    }

    /// That the announcement is this Node's, and that its key is its own alone.
    fn try_identity<'n>(
        &self,
        node: &NodeRecord,
        announcement: &'n Announcement,
    ) -> Result<&'n EpochKey, String> {
        is_own(node, announcement)?;
        for key in &announcement.epochs {
            if key.public_key == self.local.own.public_key {
                return Err(format!("announces this node's own public key {}", key.public_key));
            }
            if let Some(other) = self.keys.other(&key.public_key, &node.name) {
                return Err(format!("announces the public key {}, as does node {other:?}", key.public_key));
            }
        }
        let own = self.local.own.epoch;
        let epoch = announcement.epoch(own).ok_or_else(|| {
            let epochs: Vec<u64> = announcement.epochs.iter().map(|key| key.epoch).collect();
            format!("announces no key of this node's epoch {own}, only of {epochs:?}")
        })?;
        if epoch.port == 0 || epoch.lanes == 0 || epoch.port.checked_add(epoch.lanes.into()).is_none() {
            return Err(format!("announces port {} with {} lanes", epoch.port, epoch.lanes));
        }
        Ok(epoch)
    }

    /// The announced and registered addresses; returns the one to send to.
    fn try_endpoints(&self, node: &NodeRecord, announcement: &Announcement) -> Result<IpAddr, String> {
        for address in announcement.endpoints.iter().chain(&node.addresses) {
            if !is_unicast(*address) {
                return Err(format!("its address {address} is loopback or otherwise no node's address"));
            }
            if self.local.own.has(*address) {
                return Err(format!("its address {address} is this node's own"));
            }
            if let Some(net) = nets::find(&self.pods, *address) {
                return Err(format!("its address {address} is inside the pod CIDR {net}"));
            }
            let cluster = self.settings.cluster_cidrs.iter().find(|net| net.contains(address));
            if let Some(net) = cluster.or_else(|| nets::find(&self.retained, *address)) {
                return Err(format!("its address {address} is inside {net}, which is pods'"));
            }
            if let Some(services) = self.settings.service_cidrs.iter().find(|net| net.contains(address)) {
                return Err(format!("its address {address} is among the service addresses {services}"));
            }
            if !node.control_plane && self.settings.api_servers.contains(address) {
                return Err(format!(
                    "its address {address} is the API server's, but it has no label of the control plane"
                ));
            }
            if !self.settings.may_be_node(address) {
                return Err(format!("its address {address} is outside --node-cidrs"));
            }
            if let Some(other) = self.addresses.other(address, &node.name) {
                return Err(format!("its address {address} is claimed by node {other:?}, too"));
            }
        }
        if let Some(foreign) = foreign_endpoint(node, announcement) {
            return Err(format!("announces the endpoint {foreign}, which is none of the Node's InternalIPs"));
        }
        let endpoints = &announcement.endpoints;
        let mut reachable = endpoints
            .iter()
            .filter(|endpoint| self.local.endpoints.iter().any(|own| own.is_ipv4() == endpoint.is_ipv4()));
        if reachable.clone().next().is_none() {
            return Err(format!("announces no endpoint of an address family of this node: {endpoints:?}"));
        }
        reachable.find(|endpoint| self.is_credible(endpoint)).copied().ok_or_else(|| {
            let what = "are outside this node's subnets; name all nodes' networks with --node-cidrs";
            format!("its endpoints {endpoints:?} {what}")
        })
    }

    /// Whether an address is where nodes' addresses are believed to be.
    fn is_credible(&self, address: &IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

/// Whether an announcement can be that of the Node it stands on at all.
fn is_own(node: &NodeRecord, announcement: &Announcement) -> Result<(), String> {
    if announcement.node != node.name {
        return Err(format!("carries the announcement of node {:?}", announcement.node));
    }
    // A registry of manifests written by hand may know no UIDs; Kubernetes always does.
    if !node.uid.is_empty() && announcement.uid != node.uid {
        return Err(format!(
            "the announcement is for the UID {}, but the Node is {}: stale or copied",
            announcement.uid, node.uid
        ));
    }
    Ok(())
}

/// An announced endpoint that the registry does not know as the Node's.
fn foreign_endpoint(node: &NodeRecord, announcement: &Announcement) -> Option<IpAddr> {
    announcement.endpoints.iter().find(|endpoint| !node.addresses.contains(endpoint)).copied()
}

/// For each node whose CIDR overlaps with another node's: its CIDR, the other node and the other's CIDR.
/// `cidrs` are sorted so that each comes after all that hold it.
fn overlaps<'a>(cidrs: &[(IpNet, &'a str)]) -> BTreeMap<&'a str, (IpNet, &'a str, IpNet)> {
    let mut found = BTreeMap::new();
    // The networks that hold the current one, from the widest to the nearest.
    let mut around: Vec<(IpNet, &str)> = Vec::new();
    for (net, name) in cidrs.iter().copied() {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            around.pop();
        }
        for (outer, other) in around.iter().filter(|(_, other)| *other != name) {
            found.entry(name).or_insert((net, *other, *outer));
            found.entry(*other).or_insert((*outer, name, net));
        }
        around.push((net, name));
    }
    found
}
