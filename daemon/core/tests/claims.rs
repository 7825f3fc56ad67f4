//! Who is believed: a table of every way a node can be wrong, and what must hold for any registry at all.

mod common;

use std::net::IpAddr;

use common::*;
use ipnet::IpNet;
use proptest::prelude::*;
use warren_api::node::{Address, Node};
use warren_api::{Announcement, annotations};
use warren_core::*;

#[test]
fn a_sound_mesh_is_believed() {
    let others = [2, 3].map(|n| announced(mk_node(n), &mk_announcement(n)));
    let plan = planned(&mk_snapshot(&others));
    assert_eq!(plan.quarantined, []);
    assert_eq!(plan.problems, Vec::<String>::new());
    assert_eq!(peers(&plan), ["node-2", "node-3"]);
    let tunnel = &plan.desired.tunnels["warren-a0"];
    assert_eq!(tunnel.mtu, 1440);
    let peer = &tunnel.peers[&key(2)];
    assert_eq!(peer.endpoint.to_string(), "192.0.2.2:51820");
    let allowed: Vec<String> = peer.allowed_ips.iter().map(IpNet::to_string).collect();
    assert_eq!(allowed, ["10.244.2.0/24", "192.0.2.2/32", "fd00:2::/64"]);
    let addresses: Vec<String> = tunnel.addresses.iter().map(IpAddr::to_string).collect();
    assert_eq!(addresses, ["10.244.1.0", "fd00:1::"]);
    assert_eq!(plan.announcement.unwrap(), Announcement { mtu: 1440, ..mk_announcement(1) });
}

/// Everything that can be wrong with node 2: how, what the operator reads, and whether its registered
/// 10.244.2.0/24 is blocked nevertheless (unless the registry itself gave it something else).
#[test]
fn each_wrong_claim_is_quarantined_by_name_and_reason_and_its_pods_are_blocked() {
    type Break = fn(&mut Node, &mut Announcement);
    let cases: &[(&str, Break, bool)] = &[
        ("carries the announcement of node \"node-9\"", |_, a| a.node = "node-9".into(), true),
        ("stale or copied", |_, a| a.uid = "uid-old".into(), true),
        ("stale or copied", |_, a| a.uid = String::new(), true),
        ("announces this node's own public key", |_, a| a.epochs[0].public_key = key(1), true),
        ("as does node \"node-3\"", |_, a| a.epochs[0].public_key = key(3), true),
        ("announces no key of this node's epoch 0", |_, a| a.epochs[0].epoch = 4, true),
        ("announces no key of this node's epoch 0", |_, a| a.epochs.clear(), true),
        ("announces port 0", |_, a| a.epochs[0].port = 0, true),
        ("with 0 lanes", |_, a| a.epochs[0].lanes = 0, true),
        (
            "which the registry did not give it",
            |_, a| a.pod_cidrs.push("10.244.3.0/24".parse().unwrap()),
            true,
        ),
        (
            "which the registry did not give it",
            |_, a| a.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()],
            true,
        ),
        ("which the registry did not give it", |_, a| a.pod_cidrs.push("0.0.0.0/0".parse().unwrap()), true),
        ("is loopback", |_, a| a.endpoints = vec!["127.0.0.1".parse().unwrap()], true),
        ("is loopback", |_, a| a.endpoints = vec!["::1".parse().unwrap()], true),
        ("no node's address", |_, a| a.endpoints = vec!["0.0.0.0".parse().unwrap()], true),
        ("no node's address", |_, a| a.endpoints = vec!["::ffff:192.0.2.2".parse().unwrap()], true),
        ("no node's address", |_, a| a.endpoints = vec!["224.0.0.1".parse().unwrap()], true),
        ("is this node's own", |_, a| a.endpoints = vec!["192.0.2.1".parse().unwrap()], true),
        ("is this node's own", |_, a| a.endpoints = vec!["172.17.0.1".parse().unwrap()], true),
        (
            "inside the pod CIDR 10.244.3.0/24",
            |n, a| {
                n.status.addresses[0].address = "10.244.3.7".into();
                a.endpoints = vec!["10.244.3.7".parse().unwrap()];
            },
            true,
        ),
        ("inside the pod CIDR 10.244.1.0/24", |_, a| a.endpoints = vec!["10.244.1.9".parse().unwrap()], true),
        (
            "is claimed by node \"node-3\", too",
            |n, a| {
                n.status.addresses[0].address = "192.0.2.3".into();
                a.endpoints = vec!["192.0.2.3".parse().unwrap()];
            },
            true,
        ),
        ("none of the Node's InternalIPs", |_, a| a.endpoints = vec!["192.0.2.77".parse().unwrap()], true),
        (
            "no endpoint of an address family",
            |n, a| {
                n.status.addresses[0].address = "fd77::2".into();
                a.endpoints = vec!["fd77::2".parse().unwrap()];
            },
            true,
        ),
        ("no endpoint", |_, a| a.endpoints.clear(), true),
        ("is no CIDR", |n, _| n.spec.pod_cidrs[1] = "fd00:2::/640".into(), true),
        ("is no IP address", |n, _| n.status.addresses[0].address = "192.0.2.256".into(), true),
        ("too wide for one node", |n, _| n.spec.pod_cidrs[0] = "0.0.0.0/0".into(), false),
        ("overlaps this node's 10.244.1.0/24", |n, _| n.spec.pod_cidrs[0] = "10.244.1.128/25".into(), false),
        ("overlaps this node's 10.244.1.0/24", |n, _| n.spec.pod_cidrs[0] = "10.244.0.0/16".into(), true),
        (
            "covers this node's address or the underlay",
            |n, _| n.spec.pod_cidrs[0] = "192.0.2.0/24".into(),
            false,
        ),
        (
            "covers this node's address or the underlay",
            |n, _| n.spec.pod_cidrs[0] = "192.0.0.0/16".into(),
            false,
        ),
    ];
    for (reason, break_it, blocked) in cases {
        let (mut node, mut announcement) = (mk_node(2), mk_announcement(2));
        break_it(&mut node, &mut announcement);
        let others = [announced(node, &announcement), announced(mk_node(3), &mk_announcement(3))];
        let plan = planned(&mk_snapshot(&others));
        let found: Vec<_> = plan.quarantined.iter().filter(|q| q.node == "node-2").collect();
        assert!(
            matches!(found[..], [one] if one.reason.contains(reason)),
            "{reason}: {:?}",
            plan.quarantined
        );
        assert!(!peers(&plan).contains(&"node-2"), "{reason}");
        let duplicate = reason.contains("node-3") && !reason.contains("CIDR");
        assert_eq!(peers(&plan).contains(&"node-3"), !duplicate, "{reason}: the rest of the mesh goes on");
        assert_eq!(blocks(&plan, "10.244.2.0/24"), *blocked, "{reason}");
        assert!(blocks(&plan, "10.244.3.0/24"), "{reason}");
        for mine in ["192.0.2.1/32", "192.0.2.254/32", "10.244.1.7/32", "192.0.2.3/32"] {
            assert!(!blocks(&plan, mine), "{reason}: {mine} must stay reachable");
        }
    }
}

#[test]
fn malformed_and_future_announcements_are_quarantined() {
    for (json, reason) in [
        ("{", "malformed"),
        ("", "malformed"),
        (r#"{"version":2}"#, "has version 2"),
        (r#"{"version":1,"node":"node-2"}"#, "missing field"),
        (&mk_announcement(2).to_json().replace(&key(2).to_string(), &"A".repeat(43)), "malformed"),
        (&mk_announcement(2).to_json().replace(&key(2).to_string(), &("A".repeat(43) + "=")), "all zero"),
    ] {
        let mut node = mk_node(2);
        node.metadata.annotations.insert(annotations::ANNOUNCEMENT.into(), json.into());
        let plan = planned(&mk_snapshot(&[node]));
        assert!(plan.quarantined[0].reason.contains(reason), "{json}: {:?}", plan.quarantined);
        assert!(blocks(&plan, "10.244.2.0/24") && blocks(&plan, "fd00:2::/64"));
    }
}

#[test]
fn a_node_that_said_nothing_yet_is_blocked_and_waited_for() {
    let plan = planned(&mk_snapshot(&[mk_node(2)]));
    assert_eq!(plan.waiting, ["node-2"]);
    assert!(blocks(&plan, "10.244.2.0/24"));
    let unreachable = |route: &Route| {
        route.kind == RouteKind::Unreachable && route.destination == "10.244.2.0/24".parse().unwrap()
    };
    assert!(plan.desired.routes.iter().any(unreachable));
}

#[test]
fn overlapping_pod_cidrs_quarantine_both() {
    let mut wide = mk_node(2);
    wide.spec.pod_cidrs = vec!["10.244.2.0/23".into()];
    let mut announcement = mk_announcement(2);
    announcement.pod_cidrs = vec!["10.244.2.0/23".parse().unwrap()];
    let others = [announced(wide, &announcement), announced(mk_node(3), &mk_announcement(3))];
    let plan = planned(&mk_snapshot(&others));
    let names: Vec<&str> = plan.quarantined.iter().map(|q| q.node.as_str()).collect();
    assert_eq!(names, ["node-2", "node-3"]);
    assert!(blocks(&plan, "10.244.2.0/23"));
}

fn standing(remote_pods: &[&str], local_pods: &[&str], remote_nodes: &[&str]) -> Standing {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    let guard = Guard {
        remote_pods: nets(remote_pods),
        local_pods: nets(local_pods),
        remote_nodes: nets(remote_nodes),
        ..Guard::default()
    };
    Standing { guard, ..Standing::default() }
}

#[test]
fn pods_networks_stay_blocked_when_their_node_vanishes() {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    let standing = standing(&["10.244.7.0/24", "10.244.1.0/25", "10.9.0.0/24"], &["10.244.1.0/24"], &[]);
    let gone = plan(&snapshot, &standing);
    assert!(blocks(&gone, "10.244.7.0/24"), "node 7 may still run");
    assert!(!blocks(&gone, "10.244.1.0/25"), "what is this node's now is not blocked");
    assert_eq!(peers(&gone), ["node-2"]);
    snapshot.settings.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let told = plan(&snapshot, &standing);
    assert!(blocks(&told, "10.244.7.0/24") && !blocks(&told, "10.9.0.0/24"), "the operator knows better");
}

#[test]
fn nodes_addresses_stay_guarded_when_their_node_vanishes() {
    let snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    let standing = standing(&[], &["10.244.1.0/24"], &["192.0.2.7/32", "192.0.2.1/32", "10.244.1.9/32"]);
    let nodes = plan(&snapshot, &standing).desired.guard.unwrap().remote_nodes;
    let nodes: Vec<String> = nodes.iter().map(IpNet::to_string).collect();
    assert_eq!(nodes, ["192.0.2.2/32", "192.0.2.7/32"], "what is this node's is let go");
}

/// What one node says of itself must not take others down, as long as it can be refuted without asking them.
#[test]
fn a_refuted_claim_condemns_nobody_else() {
    let honest = [2, 3].map(|n| announced(mk_node(n), &mk_announcement(n)));
    let mut foreign_endpoints = mk_announcement(9);
    foreign_endpoints.endpoints.extend([2, 3].map(|n| IpAddr::from([192, 0, 2, n])));
    let mut posing = mk_announcement(2);
    posing.epochs = [2, 3].map(|n| mk_announcement(n).epochs.remove(0)).to_vec();
    for lie in [foreign_endpoints, posing] {
        let [two, three] = honest.clone();
        let plan = planned(&mk_snapshot(&[two, three, announced(mk_node(9), &lie)]));
        assert_eq!(peers(&plan), ["node-2", "node-3"], "{:?}", plan.quarantined);
        assert_eq!(plan.quarantined.len(), 1);
    }
}

/// The kubelet writes a Node's addresses, so they are a claim like any other.
#[test]
fn an_address_that_is_no_nodes_is_not_believed() {
    let try_address = |address: &str, settings: Settings, retained: &[&str]| {
        let mut node = mk_node(2);
        node.status.addresses[0].address = address.into();
        let announcement = Announcement { endpoints: vec![address.parse().unwrap()], ..mk_announcement(2) };
        let mut snapshot = mk_snapshot(&[announced(node, &announcement), mk_node(3)]);
        snapshot.settings = settings;
        plan(&snapshot, &standing(retained, &[], &[]))
    };
    let ranges = |cluster: &[&str], nodes: &[&str]| {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        Settings { cluster_cidrs: nets(cluster), node_cidrs: nets(nodes), ..Settings::default() }
    };
    for (address, settings, retained) in [
        ("8.8.8.8", Settings::default(), &[][..]),
        ("8.8.8.8", ranges(&[], &["192.0.2.0/24"]), &[]),
        ("10.244.77.5", ranges(&["10.244.0.0/16"], &[]), &[]),
        ("10.244.77.5", Settings::default(), &["10.244.77.0/24"]),
        ("192.0.2.200", Settings::default(), &["192.0.2.128/25"]),
        ("10.244.3.5", Settings::default(), &[]),
    ] {
        let plan = try_address(address, settings, retained);
        assert_eq!(peers(&plan), Vec::<&str>::new(), "{address}");
        assert!(
            !plan.desired.routes.iter().any(|r| r.destination.contains(&address.parse::<IpAddr>().unwrap())
                && r.table == warren_api::names::NODES_TABLE),
            "{address} is routed"
        );
        assert_eq!(
            blocks(&plan, &format!("{address}/32")),
            address.starts_with("10.") || !retained.is_empty()
        );
    }
    let other_rack = try_address("198.51.100.2", ranges(&[], &["192.0.2.0/24", "198.51.100.0/24"]), &[]);
    assert_eq!(peers(&other_rack), ["node-2"]);
}

#[test]
fn an_address_this_node_cannot_judge_is_no_reason_against_its_node() {
    let mut node = mk_node(2);
    for more in ["fd77::2", "203.0.113.2"] {
        node.status.addresses.push(Address { kind: "InternalIP".into(), address: more.into() });
    }
    let endpoints = ["203.0.113.2", "fd77::2", "192.0.2.2"].map(|a| a.parse().unwrap()).to_vec();
    let plan = planned(&mk_snapshot(&[announced(node, &Announcement { endpoints, ..mk_announcement(2) })]));
    let tunnel = &plan.desired.tunnels["warren-a0"];
    let peer = &tunnel.peers[&key(2)];
    assert_eq!(peer.endpoint.to_string(), "192.0.2.2:51820");
    let allowed: Vec<String> = peer.allowed_ips.iter().map(IpNet::to_string).collect();
    assert_eq!(allowed, ["10.244.2.0/24", "192.0.2.2/32", "fd00:2::/64"]);
}

#[test]
fn a_pod_cidr_over_the_address_of_a_node_makes_nobody_a_peer_of_either() {
    for (cidr, node_cidrs, believed) in [
        ("192.0.2.128/25", vec![], vec![]),
        // Where the operator says what is the underlay's, it is clear who is wrong.
        ("198.51.100.0/24", vec!["192.0.2.0/24", "198.51.100.0/24"], vec!["node-100"]),
        ("192.0.2.128/25", vec!["192.0.2.0/24", "198.51.100.0/24"], vec!["node-100"]),
    ] {
        let mut wrong = mk_node(2);
        wrong.spec.pod_cidrs = vec![cidr.into()];
        let claim = Announcement { pod_cidrs: vec![cidr.parse().unwrap()], ..mk_announcement(2) };
        let address = if cidr.starts_with("198") { "198.51.100.200" } else { "192.0.2.200" };
        let mut right = mk_node(100);
        right.status.addresses[0].address = address.into();
        let truth = Announcement { endpoints: vec![address.parse().unwrap()], ..mk_announcement(100) };
        let mut snapshot = mk_snapshot(&[announced(wrong, &claim), announced(right, &truth)]);
        snapshot.settings.node_cidrs = node_cidrs.iter().map(|net| net.parse().unwrap()).collect();
        let plan = planned(&snapshot);
        assert_eq!(peers(&plan), believed, "{cidr}: {:?}", plan.quarantined);
        if !believed.is_empty() {
            assert!(!blocks(&plan, &format!("{address}/32")), "the peer's outer packets are blocked");
        }
    }
}

#[test]
fn a_cluster_cidr_of_one_family_says_nothing_of_the_other() {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    snapshot.settings.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let plan = planned(&snapshot);
    assert_eq!(peers(&plan), ["node-2"], "{:?}", plan.quarantined);
    assert!(blocks(&plan, "fd00:2::/64"));
}

#[test]
fn a_node_that_stands_twice_is_believed_neither_time_and_blocked_both_times() {
    let twice = [mk_node(2), mk_node(2)].map(|node| announced(node, &mk_announcement(2)));
    let plan = planned(&mk_snapshot(&twice));
    assert!(blocks(&plan, "10.244.2.0/24"));
    assert!(plan.desired.guard.as_ref().unwrap().remote_nodes.contains(&"192.0.2.2/32".parse().unwrap()));
    assert_eq!(peers(&plan), Vec::<&str>::new());
    assert!(plan.quarantined[0].reason.contains("2 times"), "{:?}", plan.quarantined);
}

#[test]
fn without_its_own_node_nothing_is_removed() {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    snapshot.records.retain(|record| !matches!(record, Record::Node(node) if node.name == "node-1"));
    let plan = plan(&snapshot, &standing(&["10.244.9.0/24"], &["10.244.1.0/24"], &["192.0.2.9/32"]));
    assert!(plan.hold && plan.desired.tunnels.is_empty() && plan.announcement.is_none());
    let guard = plan.desired.guard.as_ref().unwrap();
    assert_eq!(guard.local_pods, ["10.244.1.0/24".parse().unwrap()].into());
    assert!(guard.remote_nodes.contains(&"192.0.2.9/32".parse().unwrap()) && blocks(&plan, "10.244.9.0/24"));
    assert!(!blocks(&plan, "10.244.1.0/24"));
    assert!(plan.problems[0].contains("no readable Node \"node-1\""), "{:?}", plan.problems);
    assert!(blocks(&plan, "10.244.2.0/24"));
}

#[test]
fn with_the_clusters_cidr_unknown_nodes_are_blocked_too_but_never_the_own_pods() {
    let mut snapshot = mk_snapshot(&[]);
    snapshot.settings.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let plan = planned(&snapshot);
    assert!(blocks(&plan, "10.244.200.0/24") && blocks(&plan, "10.244.0.0/24"));
    assert!(!blocks(&plan, "10.244.1.0/24"));
}

#[test]
fn an_underlay_wider_than_the_cluster_unguards_nothing() {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    snapshot.own.local_addresses[1].net = "192.0.2.1/0".parse().unwrap();
    let plan = planned(&snapshot);
    assert_eq!(peers(&plan), ["node-2"]);
    assert!(blocks(&plan, "10.244.2.0/24"));
}

#[test]
fn permissive_routes_nothing_into_a_wall() {
    let mut snapshot = mk_snapshot(&[mk_node(2)]);
    snapshot.settings.enforcement = warren_api::status::Enforcement::Permissive;
    let plan = planned(&snapshot);
    assert!(plan.desired.routes.is_empty(), "{:?}", plan.desired.routes);
    assert!(blocks(&plan, "10.244.2.0/24"), "it is still counted");
}

prop_compose! {
    fn any_claim()(
        node in 1u8..6, name in 1u8..6, keyed in 1u8..6, cidr in 0u8..8, width in 6u8..33, endpoint in 0u8..8,
        said in any::<bool>(), honest in any::<bool>()
    ) -> Node {
        if honest {
            return announced(mk_node(node), &mk_announcement(node));
        }
        let mut announcement = mk_announcement(name);
        announcement.epochs[0].public_key = key(keyed);
        announcement.endpoints = vec![IpAddr::from([192, 0, 2, endpoint])];
        let net = format!("10.244.{cidr}.0/{width}").parse::<IpNet>().unwrap().trunc();
        announcement.pod_cidrs = vec![net];
        let mut node = mk_node(node);
        node.spec.pod_cidrs = vec![net.to_string()];
        if said { announced(node, &announcement) } else { node }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_claimed_no_two_peers_share_anything_and_this_node_stays_itself(
        others in prop::collection::vec(any_claim(), 0..6)
    ) {
        let snapshot = mk_snapshot(&others);
        let plan = planned(&snapshot);
        let Some(tunnel) = plan.desired.tunnels.get("warren-a0") else {
            prop_assert!(plan.hold);
            return Ok(());
        };
        let allowed: Vec<IpNet> =
            tunnel.peers.values().flat_map(|peer| peer.allowed_ips.iter().copied()).collect();
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        for (i, a) in allowed.iter().enumerate() {
            prop_assert!(!allowed[i + 1..].iter().any(|b| overlap(a, b)), "{a} is allowed twice");
        }
        let guard = plan.desired.guard.as_ref().unwrap();
        let mine: Vec<IpNet> =
            ["192.0.2.1/32", "10.244.1.0/24", "fd00:1::/64"].map(|net| net.parse().unwrap()).to_vec();
        for mine in &mine {
            prop_assert!(!allowed.iter().any(|net| overlap(net, mine)), "{mine} is allowed to a peer");
            prop_assert!(!guard.remote_pods.iter().any(|net| overlap(net, mine)), "{mine} is blocked");
        }
        // Outer packets are never caught by what is for pods.
        for peer in tunnel.peers.values() {
            let endpoint = peer.endpoint.ip();
            prop_assert!(!guard.remote_pods.iter().any(|net| net.contains(&endpoint)));
            prop_assert!(!plan.desired.routes.iter().any(
                |route| route.table == warren_api::names::PODS_TABLE && route.destination.contains(&endpoint)
            ));
        }
        // Whoever is routed into the tunnel is guarded, too.
        for route in plan.desired.routes.iter().filter(|route| route.table == warren_api::names::PODS_TABLE) {
            prop_assert!(guard.remote_pods.iter().any(|net| net.contains(&route.destination)), "{route}");
        }
        // And the order of the registry's entries decides nothing.
        let mut backwards = snapshot.clone();
        backwards.records.reverse();
        prop_assert_eq!(planned(&backwards).desired, plan.desired);
    }
}
