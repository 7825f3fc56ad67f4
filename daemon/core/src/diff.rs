//! From what is to what should be, as a list of actions.
//!
//! The order is the promise "no hole on the way":
//!
//! 1. the guard, in one transaction;
//! 2. `unreachable` routes and the rules that lead to them: from here on, what has no tunnel drops;
//! 3. the tunnels: process or device, identity, peers (a moved allowed IP goes straight to its new peer), link;
//! 4. routes into the tunnels; then what leads and holds this node's own programs to them, which spoke in the clear
//!    until now: `unreachable` routes, rules, guard;
//! 5. removals, in the reverse order: rules, the programs' `unreachable` routes, routes into the tunnels, what the
//!    reverse-path filters were before, addresses, other `unreachable` routes, tunnels, guard.
//!
//! Where the rule for the programs stands already, an `unreachable` route to a node that has no route into a tunnel beside
//! it would stop all that comes from that node, the tunnels' own packets too: the reverse-path filter, even a loose one,
//! asks where the sender is reached (kernel `fib_frontend.c`, `__fib_validate_source`).
//!
//! Applying all actions to what was observed yields what is desired; the difference is then empty.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use warren_api::{Backend, PublicKey};

use crate::action::{Action, DeviceChange, PeerChange};
use crate::desired::{Desired, Guard, Route, RouteKind, Rule, Tunnel, TunnelPeer};
use crate::observed::{Observed, ObservedDevice, ObservedLink, ObservedPeer, ObservedTunnel};

/// The actions that lead from `observed` to `desired`; none if that is where it is.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let (stops, observed) = without_half_tunnels(desired, observed);
    let observed = &*observed;
    let mut actions = Vec::new();
    let (first, last) = guard(desired.guard.as_ref(), observed);
    actions.extend(first);

    let (add, remove) = routes(&desired.routes, &observed.routes);
    let (tunnels, blocks): (Vec<_>, Vec<_>) =
        add.into_iter().partition(|route| matches!(route.kind, RouteKind::Tunnel { .. }));
    let programs: BTreeSet<u32> =
        desired.rules.iter().chain(&observed.rules).filter_map(Rule::programs).collect();
    let is_programs = |route: &Route| programs.contains(&route.table);
    let (late_blocks, blocks): (Vec<_>, Vec<_>) = blocks.into_iter().partition(is_programs);
    actions.extend(blocks.into_iter().map(Action::AddRoute));
    let strict = observed.strict.iter().filter(|(link, _)| desired.loose.contains(*link));
    actions.extend(strict.map(|(link, was)| Action::Loosen { link: *link, was: *was }));
    let (add, remove_rules) = rules(&desired.rules, &observed.rules);
    let (hosts, add): (Vec<_>, Vec<_>) = add.into_iter().partition(|rule| rule.programs().is_some());
    actions.extend(add.into_iter().map(Action::AddRule));
    actions.extend(stops);
    let none = ObservedTunnel::default();
    let found = |interface: &Arc<str>| observed.tunnels.get(interface).unwrap_or(&none);
    let changes = desired.tunnels.iter().flat_map(|(name, wanted)| tunnel(name, wanted, found(name)));
    let (farewells, changes): (Vec<_>, Vec<_>) = changes.partition(is_farewell);
    let (starts, changes): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| matches!(change, Action::StartTunnel { .. }));
    actions.extend(starts);
    actions.extend(changes);
    actions.extend(tunnels.into_iter().chain(late_blocks).map(Action::AddRoute));
    actions.extend(hosts.into_iter().map(Action::AddRule));
    actions.extend(last);

    actions.extend(remove_rules.into_iter().map(Action::RemoveRule));
    let (blocks, tunnels): (Vec<_>, Vec<_>) =
        remove.into_iter().partition(|route| route.kind == RouteKind::Unreachable);
    let (early_blocks, blocks): (Vec<_>, Vec<_>) = blocks.into_iter().partition(is_programs);
    actions.extend(early_blocks.into_iter().chain(tunnels).map(Action::RemoveRoute));
    // Nothing leads what nodes' own programs send into tunnels any more.
    let loosened = observed.loosened.iter().filter(|(link, _)| !desired.loose.contains(*link));
    actions.extend(loosened.map(|(link, filter)| Action::Restore { link: *link, filter: *filter }));
    actions.extend(farewells);
    for (interface, wanted) in &desired.tunnels {
        actions.extend(superfluous_addresses(interface, wanted, found(interface)));
    }
    actions.extend(blocks.into_iter().map(Action::RemoveRoute));
    let superfluous =
        observed.tunnels.iter().filter(|(interface, _)| !desired.tunnels.contains_key(*interface));
    actions.extend(superfluous.map(|(interface, found)| stop(interface, found)));
    if desired.guard.is_none() && observed.guard_table {
        actions.push(Action::RemoveGuard);
    }
    actions
}

fn stop(interface: &Arc<str>, found: &ObservedTunnel) -> Action {
    Action::StopTunnel { interface: interface.clone(), backend: found.backend() }
}

/// Where a change does nothing but let peers go, it waits until no route leads to them: in permissive mode their
/// packets go on in the clear, and none is lost. One that does more stays whole: keys and allowed IPs change hands.
fn is_farewell(action: &Action) -> bool {
    let Action::ConfigureDevice { change, .. } = action else { return false };
    let DeviceChange { identity, listen_port, fwmark, peers } = change;
    !identity && listen_port.is_none() && fwmark.is_none() && peers.iter().all(|peer| peer.remove)
}

/// An interface without its device, or the reverse, is no tunnel, and one of another backend is not the one that is
/// wanted: it is started anew, and whatever hangs on the interface goes with it.
fn without_half_tunnels<'a>(desired: &Desired, observed: &'a Observed) -> (Vec<Action>, Cow<'a, Observed>) {
    let mut observed = Cow::Borrowed(observed);
    let mut actions = Vec::new();
    for (interface, wanted) in &desired.tunnels {
        let Some(found) = observed.tunnels.get(interface) else { continue };
        let foreign = found.link.as_ref().is_some_and(|link| link.backend != wanted.backend);
        if found.link.is_some() && found.device.is_some() && !foreign {
            continue;
        }
        if foreign || wanted.backend == Backend::Kernel {
            actions.push(stop(interface, found));
        }
        let observed = observed.to_mut();
        observed.tunnels.remove(interface);
        observed.routes.retain(|route| !leads_into(route, interface));
    }
    (actions, observed)
}

/// Whether a route is gone when an interface goes. Of one over several the rest may stay for a moment, and no
/// harm is done where it is added again.
fn leads_into(route: &Route, interface: &Arc<str>) -> bool {
    match &route.kind {
        RouteKind::Tunnel { interfaces, .. } => interfaces.contains(interface),
        RouteKind::Foreign => true,
        RouteKind::Unreachable => false,
    }
}

/// What to do about the guard first, and last: nodes that are to be spoken to through tunnels alone.
fn guard(desired: Option<&Guard>, observed: &Observed) -> (Option<Action>, Option<Action>) {
    let Some(desired) = desired else { return (None, None) };
    match &observed.guard {
        Some(found) if same_rules(found, desired) => {
            let mut add = minus(desired, found);
            let hosts = Guard { hosts: mem::take(&mut add.hosts), ..minus(found, found) };
            (update(add, minus(found, desired)), update(hosts, minus(found, found)))
        }
        _ => (Some(Action::ReplaceGuard(desired.clone())), None),
    }
}

/// A change of the sets, unless there is none.
fn update(add: Guard, remove: Guard) -> Option<Action> {
    let is_empty = |guard: &Guard| minus(guard, guard) == *guard;
    (!is_empty(&add) || !is_empty(&remove)).then_some(Action::UpdateGuard { add, remove })
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
        hosts: &a.hosts - &b.hosts,
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

fn tunnel(interface: &Arc<str>, desired: &Tunnel, observed: &ObservedTunnel) -> Vec<Action> {
    let mut actions = Vec::new();
    let ObservedTunnel { link, device: found } = observed;
    let interface = || interface.clone();
    if found.is_none() {
        actions.push(Action::StartTunnel { interface: interface(), backend: desired.backend });
    }
    let change = match found {
        Some(found) => device(desired, found),
        None => device(desired, &ObservedDevice::default()),
    };
    let backend = desired.backend;
    actions.extend(change.map(|change| Action::ConfigureDevice { interface: interface(), backend, change }));
    let is_set = |link: &ObservedLink| link.mtu == desired.mtu && link.up && link.loose;
    if !link.as_ref().is_some_and(is_set) {
        actions.push(Action::SetLink { interface: interface(), mtu: desired.mtu });
    }
    let addresses = link.as_ref().map(|link| &link.addresses);
    let missing =
        desired.addresses.iter().filter(|address| !addresses.is_some_and(|all| all.contains(*address)));
    actions.extend(missing.map(|address| Action::AddAddress { interface: interface(), address: *address }));
    actions
}

fn superfluous_addresses(interface: &Arc<str>, desired: &Tunnel, observed: &ObservedTunnel) -> Vec<Action> {
    let found = observed.link.iter().flat_map(|link| &link.addresses);
    let superfluous = found.filter(|address| !desired.addresses.contains(address));
    let remove = |address: &IpAddr| Action::RemoveAddress { interface: interface.clone(), address: *address };
    superfluous.map(remove).collect()
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
        fwmark: (observed.fwmark != desired.fwmark).then_some(desired.fwmark),
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
    // While the session lives, the peer's authenticated packets know better than the registry where it is: that is
    // roaming. Afterwards the announced endpoint is a better guess than the last seen one.
    let astray = known.endpoint != Some(wanted.endpoint) && !(known.is_alive() && known.endpoint.is_some());
    let change = PeerChange {
        endpoint: astray.then_some(wanted.endpoint),
        keepalive: (known.keepalive != wanted.keepalive).then_some(wanted.keepalive),
        add: &wanted.allowed_ips - &known.allowed_ips,
        drop: &known.allowed_ips - &wanted.allowed_ips,
        ..PeerChange::new(key)
    };
    (found.is_none() || change != PeerChange::new(key)).then_some(change)
}
