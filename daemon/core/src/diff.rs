//! From what is to what should be, as a list of actions.
//!
//! The order is the promise "no hole on the way":
//!
//! 1. the guard, in one transaction;
//! 2. `unreachable` routes and the rules that lead to them: from here on, what has no tunnel drops;
//! 3. the tunnel: process, identity, peers (a moved allowed IP goes straight to its new peer), link;
//! 4. routes into the tunnel;
//! 5. removals, in the reverse order: rules, routes into the tunnel, addresses, `unreachable` routes, tunnel,
//!    guard.
//!
//! Applying all actions to what was observed yields what is desired; the difference is then empty.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use warren_api::PublicKey;

use crate::desired::{Desired, Guard, Route, RouteKind, Rule, Tunnel, TunnelPeer};
use crate::observed::{Observed, ObservedDevice, ObservedPeer};

/// After this time without a handshake a session is dead on both ends (REJECT_AFTER_TIME, WireGuard
/// whitepaper section 6.1), and the announced endpoint is a better guess than the last seen one. Before, the
/// peer's authenticated packets know better than the registry: that is roaming.
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// One step towards what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Put the whole guard in place, in one transaction, whatever stands there.
    ReplaceGuard(Guard),
    /// Change the guard's sets, in one transaction.
    UpdateGuard {
        /// What to put in.
        add: Guard,
        /// What to take out.
        remove: Guard,
    },
    /// Take the guard away.
    RemoveGuard,
    /// Create the tunnel's interface and the device behind it.
    StartTunnel {
        /// The interface's name.
        interface: String,
    },
    /// Change the WireGuard device, in one transaction.
    ConfigureDevice(DeviceChange),
    /// Set the interface's MTU and bring it up.
    SetLink {
        /// In bytes.
        mtu: u32,
    },
    /// Give the interface an address.
    AddAddress(IpAddr),
    /// Take an address from the interface.
    RemoveAddress(IpAddr),
    /// Add a route, in place of one with the same key.
    AddRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule, once.
    RemoveRule(Rule),
    /// End the device and remove the interface.
    StopTunnel,
}

/// A change of the WireGuard device. Peers that are not named stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChange {
    /// Whether to set the private key.
    pub identity: bool,
    /// The UDP port to listen on.
    pub listen_port: Option<u16>,
    /// Changes of peers, to be applied in this order.
    pub peers: Vec<PeerChange>,
}

/// A change of one WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// Which peer.
    pub public_key: PublicKey,
    /// Remove it, and nothing else.
    pub remove: bool,
    /// Where to send to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
    /// Allowed IPs to add; each leaves the peer that had it.
    pub add: BTreeSet<IpNet>,
    /// Allowed IPs to remove.
    pub drop: BTreeSet<IpNet>,
}

impl Action {
    /// Whether the action takes something away that still protects or carries traffic.
    pub fn removes(&self) -> bool {
        match self {
            Self::RemoveGuard | Self::RemoveAddress(_) | Self::RemoveRoute(_) | Self::RemoveRule(_) => true,
            Self::StopTunnel => true,
            Self::ReplaceGuard(_) | Self::UpdateGuard { .. } | Self::StartTunnel { .. } => false,
            Self::ConfigureDevice(_) | Self::SetLink { .. } | Self::AddAddress(_) => false,
            Self::AddRoute(_) | Self::AddRule(_) => false,
        }
    }

    /// Cuts actions into runs that can be applied together: of routes that come or go there may be thousands.
    pub fn runs(actions: &[Self]) -> impl Iterator<Item = &[Self]> {
        actions.chunk_by(|one, next| {
            matches!(
                (one, next),
                (Self::AddRoute(_), Self::AddRoute(_)) | (Self::RemoveRoute(_), Self::RemoveRoute(_))
            )
        })
    }
}

/// The actions that lead from `observed` to `desired`; none if that is where it is.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let observed = &*without_half_a_tunnel(desired, observed);
    let mut actions = Vec::new();
    actions.extend(guard(desired.guard.as_ref(), observed));

    let (add, remove) = routes(&desired.routes, &observed.routes);
    let (tunnels, blocks): (Vec<_>, Vec<_>) =
        add.into_iter().partition(|route| matches!(route.kind, RouteKind::Tunnel { .. }));
    actions.extend(blocks.into_iter().map(Action::AddRoute));
    let (add, remove_rules) = rules(&desired.rules, &observed.rules);
    actions.extend(add.into_iter().map(Action::AddRule));
    let changes = desired.tunnel.as_ref().map(|tunnel| self::tunnel(tunnel, observed));
    let (farewells, changes): (Vec<_>, Vec<_>) = changes.into_iter().flatten().partition(is_farewell);
    actions.extend(changes);
    actions.extend(tunnels.into_iter().map(Action::AddRoute));

    actions.extend(remove_rules.into_iter().map(Action::RemoveRule));
    let (blocks, tunnels): (Vec<_>, Vec<_>) =
        remove.into_iter().partition(|route| route.kind == RouteKind::Unreachable);
    actions.extend(tunnels.into_iter().map(Action::RemoveRoute));
    actions.extend(farewells);
    actions.extend(superfluous_addresses(desired, observed).map(Action::RemoveAddress));
    actions.extend(blocks.into_iter().map(Action::RemoveRoute));
    if desired.tunnel.is_none() && (observed.link.is_some() || observed.device.is_some()) {
        actions.push(Action::StopTunnel);
    }
    if desired.guard.is_none() && observed.guard_table {
        actions.push(Action::RemoveGuard);
    }
    actions
}

/// Where a change does nothing but let peers go, it waits until no route leads to them: in permissive mode their
/// packets go on in the clear, and none is lost. One that does more stays whole: keys and allowed IPs change hands.
fn is_farewell(action: &Action) -> bool {
    matches!(action, Action::ConfigureDevice(DeviceChange { identity: false, listen_port: None, peers })
        if peers.iter().all(|peer| peer.remove))
}

/// An interface without its device, or the reverse, is no tunnel: it is started anew, and whatever hangs on
/// the interface goes with it.
fn without_half_a_tunnel<'a>(desired: &Desired, observed: &'a Observed) -> Cow<'a, Observed> {
    let whole = observed.link.is_some() && observed.device.is_some();
    if desired.tunnel.is_none() || whole {
        return Cow::Borrowed(observed);
    }
    let mut observed = observed.clone();
    observed.link = None;
    observed.device = None;
    observed.routes.retain(|route| route.kind == RouteKind::Unreachable);
    Cow::Owned(observed)
}

fn guard(desired: Option<&Guard>, observed: &Observed) -> Option<Action> {
    let desired = desired?;
    match &observed.guard {
        Some(found) if found == desired => None,
        Some(found) if same_rules(found, desired) => {
            Some(Action::UpdateGuard { add: minus(desired, found), remove: minus(found, desired) })
        }
        _ => Some(Action::ReplaceGuard(desired.clone())),
    }
}

/// Whether two guards differ in their sets alone: the local pods stand in rules, too.
fn same_rules(a: &Guard, b: &Guard) -> bool {
    a.enforcement == b.enforcement && a.local_pods == b.local_pods
}

/// What is in the sets of `a` and not in those of `b`.
fn minus(a: &Guard, b: &Guard) -> Guard {
    Guard {
        enforcement: a.enforcement,
        remote_pods: &a.remote_pods - &b.remote_pods,
        local_pods: &a.local_pods - &b.local_pods,
        remote_nodes: &a.remote_nodes - &b.remote_nodes,
    }
}

/// Routes to add and to remove. Adding replaces a route of the same key, so that one is not removed.
fn routes(desired: &BTreeSet<Route>, observed: &BTreeSet<Route>) -> (Vec<Route>, Vec<Route>) {
    let add: Vec<Route> = desired.difference(observed).cloned().collect();
    let replaced: BTreeSet<_> = add.iter().map(Route::key).collect();
    let remove = observed.difference(desired).filter(|route| !replaced.contains(&route.key())).cloned();
    (add, remove.collect())
}

/// Rules to add and to remove; of a rule that stands twice, all but one.
fn rules(desired: &BTreeSet<Rule>, observed: &[Rule]) -> (Vec<Rule>, Vec<Rule>) {
    let mut missing = desired.clone();
    let remove = observed.iter().filter(|rule| !missing.remove(rule)).cloned().collect();
    (missing.into_iter().collect(), remove)
}

fn tunnel(desired: &Tunnel, observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let found = observed.device.as_ref();
    if found.is_none() {
        actions.push(Action::StartTunnel { interface: desired.interface.clone() });
    }
    let fresh = ObservedDevice::default();
    actions.extend(device(desired, found.unwrap_or(&fresh)).map(Action::ConfigureDevice));
    let link = observed.link.clone().unwrap_or_default();
    if link.mtu != desired.mtu || !link.up {
        actions.push(Action::SetLink { mtu: desired.mtu });
    }
    actions.extend((&desired.addresses - &link.addresses).into_iter().map(Action::AddAddress));
    actions
}

fn superfluous_addresses(desired: &Desired, observed: &Observed) -> impl Iterator<Item = IpAddr> + use<> {
    let kept = desired.tunnel.as_ref();
    let link = observed.link.as_ref().filter(|_| kept.is_some());
    let found = link.map(|link| link.addresses.clone()).unwrap_or_default();
    let wanted = kept.map(|tunnel| tunnel.addresses.clone()).unwrap_or_default();
    (&found - &wanted).into_iter()
}

fn device(desired: &Tunnel, observed: &ObservedDevice) -> Option<DeviceChange> {
    let none = ObservedPeer::default();
    let mut peers: Vec<PeerChange> = Vec::new();
    for (key, wanted) in &desired.peers {
        peers.extend(peer(*key, wanted, observed.peers.get(key), &none));
    }
    // Removals last: the allowed IPs of a peer that changed its key have moved by then.
    let gone = observed.peers.keys().filter(|key| !desired.peers.contains_key(key));
    peers.extend(gone.map(|key| PeerChange { remove: true, ..PeerChange::new(*key) }));
    let change = DeviceChange {
        identity: observed.public_key != Some(desired.public_key),
        listen_port: (observed.listen_port != desired.listen_port).then_some(desired.listen_port),
        peers,
    };
    (change != DeviceChange::default()).then_some(change)
}

fn peer(
    key: PublicKey,
    wanted: &TunnelPeer,
    found: Option<&ObservedPeer>,
    none: &ObservedPeer,
) -> Option<PeerChange> {
    let known = found.unwrap_or(none);
    let alive = known.since_handshake.is_some_and(|since| since < REJECT_AFTER_TIME);
    let astray = known.endpoint != Some(wanted.endpoint) && !(alive && known.endpoint.is_some());
    let change = PeerChange {
        endpoint: astray.then_some(wanted.endpoint),
        keepalive: (known.keepalive != wanted.keepalive).then_some(wanted.keepalive),
        add: &wanted.allowed_ips - &known.allowed_ips,
        drop: &known.allowed_ips - &wanted.allowed_ips,
        ..PeerChange::new(key)
    };
    (found.is_none() || change != PeerChange::new(key)).then_some(change)
}

impl PeerChange {
    /// No change yet.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            endpoint: None,
            keepalive: None,
            add: BTreeSet::new(),
            drop: BTreeSet::new(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplaceGuard(guard) => write!(f, "put the guard in place ({guard})"),
            Self::UpdateGuard { add, remove } => write!(f, "update the guard (add {add}; remove {remove})"),
            Self::RemoveGuard => write!(f, "remove the guard"),
            Self::StartTunnel { interface } => write!(f, "start the tunnel {interface}"),
            Self::ConfigureDevice(change) => write!(f, "configure the tunnel ({change})"),
            Self::SetLink { mtu } => write!(f, "bring the tunnel up with MTU {mtu}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
            Self::StopTunnel => write!(f, "stop the tunnel"),
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enforcement: _, remote_pods, local_pods, remote_nodes } = self;
        let [pods, local, nodes] = [remote_pods, local_pods, remote_nodes].map(BTreeSet::len);
        write!(f, "{pods} remote and {local} local pod networks, {nodes} node addresses")
    }
}

impl fmt::Display for DeviceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = self.peers.iter().filter(|peer| peer.remove).count();
        write!(f, "{} peers set, {removed} removed", self.peers.len() - removed)?;
        if self.identity { write!(f, ", identity set") } else { Ok(()) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, destination, metric, kind } = self;
        match kind {
            RouteKind::Tunnel { interface, .. } => write!(f, "{destination} dev {interface}")?,
            RouteKind::Unreachable => write!(f, "unreachable {destination}")?,
            RouteKind::Foreign => write!(f, "foreign {destination}")?,
        }
        write!(f, " table {table} metric {metric}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from ", self.priority)?;
        match self.source {
            Some(source) => write!(f, "{source}")?,
            None => write!(f, "all")?,
        }
        write!(f, " lookup {}", self.table)
    }
}
