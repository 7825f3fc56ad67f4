//! Which lanes carry packets to a peer, and which only receive.

#[allow(dead_code, reason = "shared with tests that use all of it")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use warren_core::plan::KEEPALIVE;
use warren_core::*;

use common::*;

/// The plan of node 1 with `own` lanes, where node 2 announced `theirs` and has sessions on the lanes `alive`.
fn planned_with(own: u8, theirs: u8, alive: &[u8]) -> Plan {
    let mut announcement = mk_announcement(2);
    announcement.epochs[0].lanes = theirs;
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &announcement)]);
    snapshot.own.lanes = own;
    let sessions = alive.iter().map(|lane| (name(*lane), BTreeSet::from([key(2)])));
    let plan = plan(&snapshot, &Standing { alive: sessions.collect(), ..Standing::default() });
    assert_eq!(peers(&plan), ["node-2"]);
    plan
}

fn name(lane: u8) -> Arc<str> {
    format!("warren-a{lane}").into()
}

/// The lanes of the routes to node 2, which are the same for all.
fn used(plan: &Plan) -> Vec<String> {
    let mut lists = plan.desired.routes.iter().filter_map(|route| match &route.kind {
        RouteKind::Tunnel { interfaces, .. } => {
            Some(interfaces.iter().map(|name| name.to_string()).collect())
        }
        _ => None,
    });
    let first: Vec<String> = lists.next().expect("a route to node 2");
    assert!(lists.all(|list| list == first), "the routes differ");
    first
}

/// Each lane that stands, and its keepalives to node 2; `None` where node 2 is not on it.
fn keepalives(plan: &Plan) -> BTreeMap<String, Option<u16>> {
    let tunnels = plan.desired.tunnels.iter();
    let keepalive = |tunnel: &Tunnel| tunnel.peers.get(&key(2)).map(|peer| peer.keepalive);
    tunnels.map(|(name, tunnel)| (name.to_string(), keepalive(tunnel))).collect()
}

fn expected(lanes: &[(u8, Option<u16>)]) -> BTreeMap<String, Option<u16>> {
    lanes.iter().map(|(lane, keepalive)| (name(*lane).to_string(), *keepalive)).collect()
}

#[test]
fn a_lane_carries_packets_once_a_handshake_proved_it() {
    for (alive, lanes) in [
        (&[][..], &["warren-a0"][..]),
        (&[0], &["warren-a0"]),
        (&[2], &["warren-a2"]),
        (&[1, 3], &["warren-a1", "warren-a3"]),
        (&[0, 1, 2, 3], &["warren-a0", "warren-a1", "warren-a2", "warren-a3"]),
    ] {
        let plan = planned_with(4, 4, alive);
        assert_eq!(used(&plan), lanes, "alive: {alive:?}");
        // Those that are not proven are asked to be, all the same.
        let all = [0, 1, 2, 3].map(|lane| (lane, Some(KEEPALIVE)));
        assert_eq!(keepalives(&plan), expected(&all), "alive: {alive:?}");
    }
}

#[test]
fn each_lane_has_a_port_of_its_own_on_both_ends() {
    let plan = planned_with(3, 3, &[]);
    for (lane, tunnel) in [(0, "warren-a0"), (1, "warren-a1"), (2, "warren-a2")] {
        let tunnel = &plan.desired.tunnels[tunnel];
        assert_eq!(tunnel.listen_port, 51820 + lane);
        assert_eq!(tunnel.peers[&key(2)].endpoint.port(), 51820 + lane);
    }
}

#[test]
fn a_pair_uses_the_smaller_count() {
    for (own, theirs) in [(4, 2), (2, 4)] {
        let plan = planned_with(own, theirs, &[0, 1]);
        assert_eq!(used(&plan), ["warren-a0", "warren-a1"], "{own} and {theirs}");
    }
    // Nobody is on the lanes that only this node has; they wait for other peers.
    let both = Some(KEEPALIVE);
    assert_eq!(
        keepalives(&planned_with(4, 2, &[0, 1])),
        expected(&[(0, both), (1, both), (2, None), (3, None)])
    );
    assert_eq!(keepalives(&planned_with(2, 4, &[0, 1])), expected(&[(0, both), (1, both)]));
}

#[test]
fn a_lane_that_is_used_no_more_receives_for_as_long_as_its_sessions_live() {
    let (used_still, receives) = (Some(KEEPALIVE), Some(0));
    for (own, theirs) in [(4, 1), (1, 4), (1, 1)] {
        // All four were used before; now one is, and no keepalive lets the sessions of the others live for ever.
        let plan = planned_with(own, theirs, &[0, 1, 2, 3]);
        assert_eq!(used(&plan), ["warren-a0"], "{own} and {theirs}");
        assert_eq!(
            keepalives(&plan),
            expected(&[(0, used_still), (1, receives), (2, receives), (3, receives)]),
            "{own} and {theirs}"
        );
        // The sessions have died one after the other: of the peer, and where there is no other use, of the tunnel.
        let plan = planned_with(own, theirs, &[0, 3]);
        let gone = |lane| if own == 4 { vec![(lane, None)] } else { Vec::new() };
        let rest = [vec![(0, used_still), (3, receives)], gone(1), gone(2)].concat();
        assert_eq!(keepalives(&plan), expected(&rest), "{own} and {theirs}");
    }
}

#[test]
fn what_is_used_no_more_goes_180_s_after_its_last_handshake() {
    let since = |seconds| {
        let since_handshake = Some(Duration::from_secs(seconds));
        ObservedPeer { since_handshake, ..ObservedPeer::default() }
    };
    assert!(since(179).is_alive() && !since(180).is_alive());
    assert!(!ObservedPeer::default().is_alive());

    let device = |tunnel: &Tunnel| Some(ObservedDevice::from(tunnel));
    let link = |tunnel: &Tunnel| {
        Some(ObservedLink {
            backend: tunnel.backend,
            mtu: tunnel.mtu,
            up: true,
            loose: true,
            addresses: tunnel.addresses.clone(),
        })
    };
    let stands = |tunnel: &Tunnel| ObservedTunnel { link: link(tunnel), device: device(tunnel) };
    let before = planned_with(1, 1, &[0, 1]).desired;
    let observed = Observed {
        guard: before.guard.clone(),
        guard_table: true,
        tunnels: before.tunnels.iter().map(|(name, tunnel)| (name.clone(), stands(tunnel))).collect(),
        routes: before.routes.clone(),
        rules: before.rules.iter().cloned().collect(),
        ..Observed::default()
    };
    assert_eq!(diff(&before, &observed), []);
    let after = planned_with(1, 1, &[0]).desired;
    let stop = Action::StopTunnel { interface: name(1), backend: before.tunnels[&name(1)].backend };
    assert_eq!(diff(&after, &observed), [stop]);
}

#[test]
fn without_any_proof_it_is_the_first_lane() {
    // Also where the sessions of lanes that the pair does not share live.
    for (own, theirs, alive) in [(4, 4, &[][..]), (2, 4, &[2, 3]), (4, 1, &[1])] {
        assert_eq!(used(&planned_with(own, theirs, alive)), ["warren-a0"], "{own}, {theirs}, {alive:?}");
    }
}

#[test]
fn tunnels_are_started_together() {
    let desired = planned_with(4, 4, &[]).desired;
    let actions = diff(&desired, &Observed::default());
    let mut runs = Action::runs(&actions).filter(|run| matches!(run[0], Action::StartTunnel { .. }));
    assert_eq!(runs.next().map(<[Action]>::len), Some(4));
    assert_eq!(runs.next(), None);
}

#[test]
fn what_could_not_be_had_is_left_alone() {
    let desired = planned_with(4, 4, &[0, 1]).desired;
    let actions = diff(&desired, &Observed::default());
    assert_eq!(&*Action::without(&actions, &BTreeSet::new()), actions);
    let left = Action::without(&actions, &[name(1)].into());
    let concerns = |action: &&Action, lane| action.interfaces().contains(&name(lane));
    assert_eq!(left.iter().find(|action| concerns(action, 1)), None);
    // A route over several lanes leads into each of them.
    let shared = |action: &&Action| concerns(action, 0) && concerns(action, 1);
    assert!(actions.iter().any(|action| shared(&action)));
    let kept: Vec<Action> = actions.iter().filter(|action| !concerns(action, 1)).cloned().collect();
    assert_eq!(*left, kept);
    for kind in ["start the", "configure the tunnel", "bring", "add address"] {
        let of = |lane| {
            let text = name(lane);
            left.iter()
                .any(|action| action.to_string().starts_with(kind) && action.to_string().contains(&*text))
        };
        assert!(of(0) && !of(1) && of(2) && of(3), "{kind}");
    }
    assert!(
        left.iter()
            .any(|action| matches!(action, Action::AddRoute(route) if route.kind == RouteKind::Unreachable))
    );
}
