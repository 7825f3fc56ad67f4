//! The difference, applied by a model of the kernel: it converges, it is then empty, and on the way no hole
//! opens.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;
use warren_api::status::Enforcement;
use warren_api::{Backend, PublicKey};
use warren_core::*;

/// A model of what `warrend`'s adapters do to a node.
#[derive(Debug, Clone)]
struct Model(Observed);

impl Model {
    fn apply(&mut self, action: &Action, desired: &Desired) {
        let now = &mut self.0;
        match action.clone() {
            Action::ReplaceGuard(guard) => {
                now.guard = Some(guard);
                now.guard_table = true;
            }
            Action::UpdateGuard { add, remove } => {
                let guard = now.guard.as_mut().expect("only a guard that stands is updated");
                for (set, add, remove) in [
                    (&mut guard.remote_pods, &add.remote_pods, &remove.remote_pods),
                    (&mut guard.local_pods, &add.local_pods, &remove.local_pods),
                    (&mut guard.remote_nodes, &add.remote_nodes, &remove.remote_nodes),
                    (&mut guard.hosts, &add.hosts, &remove.hosts),
                ] {
                    *set = &(&*set - remove) | add;
                }
            }
            Action::RemoveGuard => {
                now.guard = None;
                now.guard_table = false;
            }
            Action::StartTunnel { interface, backend } => {
                let before = now.tunnels.get(&interface);
                assert!(
                    before.is_none_or(|tunnel| tunnel.link.is_none() || tunnel.device.is_none()),
                    "it is there"
                );
                assert!(before.is_none_or(|tunnel| tunnel.backend() == backend), "another one is in the way");
                now.routes.retain(|route| !leads_into(route, &interface));
                let tunnel =
                    ObservedTunnel { link: Some(mk_link(backend)), device: Some(ObservedDevice::default()) };
                now.tunnels.insert(interface, tunnel);
            }
            Action::ConfigureDevice { interface, change, .. } => self.configure(&interface, change, desired),
            Action::Loosen { link, was } => {
                assert_eq!(now.strict.remove(&link), Some(was));
                now.loosened.insert(link, was);
            }
            Action::Restore { link, filter } => {
                assert_eq!(now.loosened.remove(&link), Some(filter));
                now.strict.insert(link, filter);
                let leads = |rule: &&Rule| rule.programs().is_some() && !desired.rules.contains(rule);
                assert_eq!(now.rules.iter().find(leads), None, "strict too early");
            }
            Action::SetLink { interface, mtu } => {
                let link = self.link(&interface);
                *link = ObservedLink { mtu, up: true, loose: true, ..link.clone() };
            }
            Action::AddAddress { interface, address } => {
                assert!(self.link(&interface).addresses.insert(address));
            }
            Action::RemoveAddress { interface, address } => {
                assert!(self.link(&interface).addresses.remove(&address));
            }
            Action::AddRoute(route) => {
                if let RouteKind::Tunnel { interfaces, .. } = &route.kind {
                    assert!(
                        interfaces.iter().all(|interface| self.link(interface).up),
                        "{route}: a link is down"
                    );
                }
                let now = &mut self.0;
                now.routes.retain(|other| other.key() != route.key());
                now.routes.insert(route);
            }
            Action::RemoveRoute(route) => assert!(now.routes.remove(&route)),
            Action::AddRule(rule) => now.rules.push(rule),
            Action::RemoveRule(rule) => {
                let at = now.rules.iter().position(|other| *other == rule);
                now.rules.remove(at.expect("only a rule that stands is removed"));
            }
            Action::StopTunnel { interface, backend } => {
                let stopped = now.tunnels.remove(&interface).expect("only a tunnel that is there is stopped");
                assert_eq!(stopped.backend(), backend);
                now.routes.retain(|route| !leads_into(route, &interface));
            }
        }
    }

    fn link(&mut self, interface: &str) -> &mut ObservedLink {
        let tunnel = self.0.tunnels.get_mut(interface).expect("only a tunnel that is there is set up");
        tunnel.link.as_mut().expect("only a link that exists is set up")
    }

    fn configure(&mut self, interface: &str, change: DeviceChange, desired: &Desired) {
        let tunnel = self.0.tunnels.get_mut(interface).expect("only a tunnel that is there is configured");
        let device = tunnel.device.as_mut().expect("only a device that runs is configured");
        if change.identity {
            device.public_key = Some(desired.tunnels[interface].public_key);
        }
        device.fwmark = change.fwmark.unwrap_or(device.fwmark);
        device.listen_port = change.listen_port.unwrap_or(device.listen_port);
        for change in change.peers {
            if change.remove {
                device.peers.remove(&change.public_key);
                continue;
            }
            // WireGuard's rule: an allowed IP belongs to the peer that got it last.
            for (key, other) in &mut device.peers {
                if *key != change.public_key {
                    other.allowed_ips = &other.allowed_ips - &change.add;
                }
            }
            let peer = device.peers.entry(change.public_key).or_default();
            peer.allowed_ips = &(&peer.allowed_ips - &change.drop) | &change.add;
            peer.endpoint = change.endpoint.or(peer.endpoint);
            peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
        }
    }

    /// Whether a packet to `net` can leave this node in the clear.
    fn leaks(&self, net: &IpNet) -> bool {
        let guarded = self.0.guard.as_ref().is_some_and(|guard| guard.remote_pods.contains(net));
        !guarded && !self.caught_by_routes(net)
    }

    /// Whether the routes alone keep packets to `net` from leaving in the clear, whatever becomes of the
    /// tunnel's interface.
    fn caught_by_routes(&self, net: &IpNet) -> bool {
        self.0.rules.iter().any(|rule| rule.source.is_none() && Family::from(net) == rule.family)
            && self.0.routes.iter().any(|route| catches(route, net))
    }
}

fn leads_into(route: &Route, interface: &Arc<str>) -> bool {
    match &route.kind {
        RouteKind::Tunnel { interfaces, .. } => interfaces.contains(interface),
        RouteKind::Unreachable | RouteKind::Foreign => false,
    }
}

fn mk_link(backend: Backend) -> ObservedLink {
    ObservedLink { backend, mtu: 1420, up: false, loose: false, addresses: BTreeSet::new() }
}

fn catches(route: &Route, net: &IpNet) -> bool {
    route.kind == RouteKind::Unreachable && route.destination.contains(net)
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n.max(1); 32]).unwrap()
}

fn net(n: u8) -> IpNet {
    Ipv4Net::new_assert([10, 244, n, 0].into(), 24).into()
}

prop_compose! {
    fn any_guard()(
        strict in any::<bool>(),
        pods in prop::collection::btree_set((0u8..6).prop_map(net), 0..5),
        nodes in prop::collection::btree_set((6u8..9).prop_map(net), 0..3),
        hosts in prop::collection::btree_set((6u8..9).prop_map(net), 0..2),
    ) -> Guard {
        let enforcement = if strict { Enforcement::Strict } else { Enforcement::Permissive };
        Guard { enforcement, remote_pods: pods, local_pods: [net(9)].into(), remote_nodes: nodes, hosts }
    }
}

/// Up to three lanes, each of some backend.
const LANES: [&str; 3] = ["warren-a0", "warren-a1", "warren-a2"];

fn any_route() -> impl Strategy<Value = Route> {
    let lanes = prop::sample::subsequence(&LANES[..], 1..=3);
    (0u8..6, any::<bool>(), 0u8..2, lanes, prop::option::of(1300u32..1302)).prop_map(
        |(n, blocking, source, lanes, mtu)| Route {
            table: 5180,
            destination: net(n),
            metric: if blocking { 9999 } else { 1024 },
            kind: if blocking {
                RouteKind::Unreachable
            } else {
                let interfaces = lanes.into_iter().map(Arc::from).collect();
                RouteKind::Tunnel { interfaces, source: Some([10, 0, 0, source].into()), mtu }
            },
        },
    )
}

fn any_backend() -> impl Strategy<Value = Backend> {
    prop::sample::select(&[Backend::Kernel, Backend::Userspace][..])
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (0u8..3).prop_map(|n| Rule {
        source: (n > 0).then(|| net(n)),
        ..Rule::new(Family::V4, 5180 + u32::from(n), 5180 + u32::from(n > 0))
    })
}

prop_compose! {
    fn any_addresses()(low in prop::collection::btree_set(0u8..4, 0..3)) -> BTreeSet<IpAddr> {
        low.into_iter().map(|low| IpAddr::from([10, 244, 9, low])).collect()
    }
}

/// Peers that share the networks out among them, as allowed IPs always are.
fn any_peers() -> impl Strategy<Value = Vec<(PublicKey, BTreeSet<IpNet>, u8)>> {
    prop::collection::vec((0u8..5, 0u8..3), 6).prop_map(|owners| {
        let mut peers: Vec<(PublicKey, BTreeSet<IpNet>, u8)> = Vec::new();
        for (n, (owner, port)) in owners.into_iter().enumerate() {
            match peers.iter_mut().find(|peer| peer.0 == key(owner)) {
                Some(peer) => {
                    peer.1.insert(net(n as u8));
                }
                None => peers.push((key(owner), [net(n as u8)].into(), port)),
            }
        }
        peers
    })
}

prop_compose! {
    fn any_tunnel()(
        backend in any_backend(), mtu in 1280u32..1283, port in 1u16..3, own in 20u8..22, fwmark in 0u32..2,
        addresses in any_addresses(), peers in any_peers()
    ) -> Tunnel {
        let peers = peers.into_iter().map(|(key, allowed_ips, port)| {
            let endpoint = (IpAddr::from([192, 0, 2, 1]), u16::from(port)).into();
            (key, TunnelPeer { endpoint, allowed_ips, keepalive: 25 })
        });
        Tunnel { backend, mtu, listen_port: port, fwmark, public_key: key(own), addresses, peers: peers.collect() }
    }
}

prop_compose! {
    fn any_desired()(
        guard in prop::option::weighted(0.9, any_guard()),
        tunnels in prop::collection::vec(any_tunnel(), 0..=3),
        routes in prop::collection::btree_set(any_route(), 0..8),
        rules in prop::collection::btree_set(any_rule(), 0..4),
        loose in prop::collection::btree_set(1..4u32, 0..3),
    ) -> Desired {
        let tunnels = LANES.into_iter().map(Arc::from).zip(tunnels).collect();
        let mut desired = Desired { guard, tunnels, loose, routes: BTreeSet::new(), rules };
        for route in routes {
            let there = |interface: &Arc<str>| desired.tunnels.contains_key(interface);
            if is_possible(&route, there) && desired.routes.iter().all(|other| other.key() != route.key()) {
                desired.routes.insert(route);
            }
        }
        desired
    }
}

/// Whether the kernel would take a route, where interfaces are there or not.
fn is_possible(route: &Route, there: impl Fn(&Arc<str>) -> bool) -> bool {
    match &route.kind {
        RouteKind::Tunnel { interfaces, .. } => interfaces.iter().all(there),
        RouteKind::Unreachable | RouteKind::Foreign => true,
    }
}

prop_compose! {
    fn any_observed_tunnel()(
        link in prop::option::of((any_backend(), 1280u32..1283, any::<bool>(), any::<bool>(), any_addresses())),
        device in prop::option::of((20u8..22, 1u16..3, any_peers(), any::<bool>(), prop::option::of(0u64..400))),
    ) -> ObservedTunnel {
        let link = link.map(|(backend, mtu, up, loose, addresses)| ObservedLink { backend, mtu, up, loose, addresses });
        let device = device.map(|(own, listen_port, peers, endpoint, since)| ObservedDevice {
            public_key: Some(key(own)),
            listen_port,
            fwmark: 0,
            counters: Default::default(),
            peers: peers.into_iter().map(|(key, allowed_ips, port)| (key, ObservedPeer {
                endpoint: endpoint.then(|| (IpAddr::from([192, 0, 2, 1]), u16::from(port)).into()),
                allowed_ips,
                since_handshake: since.map(Duration::from_secs),
                ..Default::default()
            })).collect(),
        });
        ObservedTunnel { link, device }
    }
}

prop_compose! {
    fn any_observed()(
        guard in prop::option::of(any_guard()), broken in any::<bool>(),
        tunnels in prop::collection::vec(any_observed_tunnel(), 0..=3),
        routes in prop::collection::btree_set(any_route(), 0..8),
        rules in prop::collection::vec(any_rule(), 0..6), strict in prop::collection::btree_map(1..4u32, 0..2u8, 0..3),
        mut loosened in prop::collection::btree_map(1..4u32, 0..2u8, 0..3),
    ) -> Observed {
        loosened.retain(|link, _| !strict.contains_key(link));
        let tunnels = LANES.into_iter().map(Arc::from).zip(tunnels);
        let tunnels = tunnels.filter(|(_, tunnel)| tunnel.link.is_some() || tunnel.device.is_some()).collect();
        let mut observed = Observed {
            guard_table: guard.is_some() || broken, guard, tunnels, strict, loosened, routes: BTreeSet::new(),
            rules,
        };
        for route in routes {
            let up = |interface: &Arc<str>| {
                let link = observed.tunnels.get(interface).and_then(|tunnel| tunnel.link.as_ref());
                link.is_some_and(|link| link.up)
            };
            if is_possible(&route, up) && observed.routes.iter().all(|other| other.key() != route.key()) {
                observed.routes.insert(route);
            }
        }
        observed
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn applying_the_difference_yields_what_is_desired(desired in any_desired(), observed in any_observed()) {
        let mut model = Model(observed);
        for action in diff(&desired, &model.0) {
            model.apply(&action, &desired);
        }
        let rest = diff(&desired, &model.0);
        prop_assert!(rest.is_empty(), "after all, still to do: {:?}", rest);
        prop_assert_eq!(&model.0.guard, &desired.guard);
        prop_assert_eq!(&model.0.routes, &desired.routes);
        prop_assert!(model.0.strict.keys().all(|link| !desired.loose.contains(link)));
        prop_assert!(model.0.loosened.keys().all(|link| desired.loose.contains(link)));
        let rules: BTreeSet<Rule> = model.0.rules.iter().cloned().collect();
        prop_assert_eq!(rules.len(), model.0.rules.len(), "a rule stands twice");
        prop_assert_eq!(&rules, &desired.rules);
        let names = |tunnels: Vec<&Arc<str>>| format!("{tunnels:?}");
        prop_assert_eq!(names(model.0.tunnels.keys().collect()), names(desired.tunnels.keys().collect()));
        for (interface, tunnel) in &desired.tunnels {
            let found = &model.0.tunnels[interface];
            prop_assert_eq!(found.backend(), tunnel.backend);
            let device = found.device.as_ref().unwrap();
            let allowed = |peers: Vec<(&PublicKey, &BTreeSet<IpNet>)>| format!("{peers:?}");
            prop_assert_eq!(
                allowed(device.peers.iter().map(|(key, peer)| (key, &peer.allowed_ips)).collect()),
                allowed(tunnel.peers.iter().map(|(key, peer)| (key, &peer.allowed_ips)).collect())
            );
        }
    }

    #[test]
    fn no_hole_opens_on_the_way(desired in any_desired(), observed in any_observed()) {
        let mut model = Model(observed);
        let wanted = desired.guard.clone().map(|guard| guard.remote_pods).unwrap_or_default();
        for (step, action) in diff(&desired, &model.0).iter().enumerate() {
            let before = model.clone();
            model.apply(action, &desired);
            for net in &wanted {
                // The guard comes first: with the first action at the latest, nothing leaks any more …
                prop_assert!(!model.leaks(net) , "step {step}, {action}: {net} leaks");
                // … and as long as the routes should catch it, they go on doing so.
                let still_wanted = desired.rules.iter().any(|rule| rule.source.is_none())
                    && desired.routes.iter().any(|route| catches(route, net));
                if still_wanted && before.caught_by_routes(net) {
                    prop_assert!(model.caught_by_routes(net), "step {step}, {action}: {net} is let go");
                }
            }
        }
    }

    #[test]
    fn a_peer_that_did_not_change_is_not_touched(desired in any_desired(), observed in any_observed()) {
        let mut model = Model(observed);
        for action in diff(&desired, &model.0) {
            model.apply(&action, &desired);
        }
        let Some((name, tunnel)) = desired.tunnels.iter().next() else { return Ok(()) };
        let Some((changed, _)) = tunnel.peers.iter().next() else { return Ok(()) };
        let mut next = desired.clone();
        next.tunnels.get_mut(name).unwrap().peers.get_mut(changed).unwrap().keepalive = 11;
        let actions = diff(&next, &model.0);
        let [Action::ConfigureDevice { interface, change, .. }] = &actions[..] else { panic!("{actions:?}") };
        prop_assert_eq!(interface, name);
        prop_assert_eq!(&change.peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), &[*changed]);
    }
}

#[test]
fn a_peer_that_roamed_is_left_where_it_is_until_its_session_is_dead() {
    let at = |last: u8| Some((IpAddr::from([192, 0, 2, last]), 51820).into());
    let tunnel = |endpoint: Option<std::net::SocketAddr>| Tunnel {
        backend: Backend::Kernel,
        mtu: 1420,
        listen_port: 1,
        fwmark: 0,
        public_key: key(20),
        addresses: BTreeSet::new(),
        peers: [(
            key(1),
            TunnelPeer { endpoint: endpoint.unwrap(), allowed_ips: BTreeSet::new(), keepalive: 0 },
        )]
        .into(),
    };
    let desired = Desired { tunnels: [("warren-a0".into(), tunnel(at(1)))].into(), ..Default::default() };
    let cases = [
        (at(2), Some(10), false, "its packets come from there"),
        (at(2), Some(181), true, "its session is dead"),
        (at(2), None, true, "it never shook hands"),
        (None, Some(10), true, "it has nowhere to send to"),
        (at(1), None, false, "it is where it said"),
    ];
    for (endpoint, since, set, why) in cases {
        let peer =
            ObservedPeer { endpoint, since_handshake: since.map(Duration::from_secs), ..Default::default() };
        let device = ObservedDevice {
            public_key: Some(key(20)),
            listen_port: 1,
            fwmark: 0,
            counters: Default::default(),
            peers: [(key(1), peer)].into(),
        };
        let link = ObservedLink { up: true, loose: true, ..mk_link(Backend::Kernel) };
        let tunnel = ObservedTunnel { link: Some(link), device: Some(device) };
        let observed = Observed { tunnels: [("warren-a0".into(), tunnel)].into(), ..Default::default() };
        assert_eq!(!diff(&desired, &observed).is_empty(), set, "{why}");
    }
}

/// A wall alone would stop what comes from there, too: the reverse-path filter of the kernel, even a loose one, asks
/// where the sender is reached (`fib_frontend.c`, `__fib_validate_source`), and the tunnels' own packets come from there.
#[test]
fn a_hosts_wall_never_stands_without_its_way_through_the_tunnel() {
    let interfaces: Arc<[Arc<str>]> = [Arc::from("warren-a0")].into();
    let way = |table, last| Route {
        table,
        destination: IpNet::from(IpAddr::from([192, 0, 2, last])),
        metric: 1024,
        kind: RouteKind::Tunnel { interfaces: interfaces.clone(), source: None, mtu: None },
    };
    let wall = |table, last| Route { metric: 9999, kind: RouteKind::Unreachable, ..way(table, last) };
    let rule = Rule { unmarked: Some(1), ..Rule::new(Family::V4, 5183, 5182) };
    let state = |hosts: &[u8]| {
        let routes = hosts.iter().flat_map(|last| [way(5182, *last), wall(5182, *last), wall(5180, *last)]);
        Desired { routes: routes.collect(), rules: [rule.clone()].into(), ..Desired::default() }
    };
    for (before, after) in [(&[2, 3][..], &[2, 4, 5][..]), (&[], &[2]), (&[2], &[])] {
        let (before, desired) = (state(before), state(after));
        let mut routes = before.routes.clone();
        let observed = Observed { routes: before.routes, rules: vec![rule.clone()], ..Observed::default() };
        for action in diff(&desired, &observed) {
            match &action {
                Action::AddRoute(route) => drop(routes.insert(route.clone())),
                Action::RemoveRoute(route) => assert!(routes.remove(route)),
                other => panic!("{other}"),
            }
            for last in 0..8 {
                let stands = |route: &Route| routes.contains(route);
                assert!(!stands(&wall(5182, last)) || stands(&way(5182, last)), "{last}, after {action}");
            }
        }
        assert_eq!(routes, desired.routes);
    }
}
