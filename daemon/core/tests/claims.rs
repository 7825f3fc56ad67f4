//! Who is believed: a table of every way a node can be wrong, and what must hold for any registry at all.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_api::node::{Address, Metadata, Node, Spec, Status};
use warren_api::{Announcement, Backend, EpochKey, PublicKey, annotations};
use warren_core::*;

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

/// Node n: address 192.0.2.n, pods 10.244.n.0/24 and fd00:n::/64, key [n; 32].
fn mk_node(n: u8) -> Node {
    Node {
        metadata: Metadata { name: format!("node-{n}"), uid: format!("uid-{n}"), ..Default::default() },
        spec: Spec { pod_cidr: None, pod_cidrs: vec![format!("10.244.{n}.0/24"), format!("fd00:{n}::/64")] },
        status: Status {
            addresses: vec![
                Address { kind: "InternalIP".into(), address: format!("192.0.2.{n}") },
                Address { kind: "Hostname".into(), address: format!("node-{n}") },
            ],
        },
    }
}

fn mk_announcement(n: u8) -> Announcement {
    Announcement {
        version: 1,
        node: format!("node-{n}"),
        uid: format!("uid-{n}"),
        epochs: vec![EpochKey {
            epoch: 0,
            public_key: key(n),
            port: 51820,
            lanes: 1,
            unknown: Default::default(),
        }],
        pod_cidrs: vec![
            format!("10.244.{n}.0/24").parse().unwrap(),
            format!("fd00:{n}::/64").parse().unwrap(),
        ],
        endpoints: vec![IpAddr::from([192, 0, 2, n])],
        backend: Backend::Userspace,
        mtu: 1420,
        unknown: Default::default(),
    }
}

fn announced(mut node: Node, announcement: &Announcement) -> Node {
    node.metadata.annotations.insert(annotations::ANNOUNCEMENT.into(), announcement.to_json());
    node
}

/// Node 1 looks at `others`.
fn mk_snapshot(others: &[Node]) -> Snapshot {
    let own = [mk_node(1)];
    let records = others.iter().chain(&own).map(|node| Record::Node(Box::new(node.into())));
    Snapshot {
        own: Own {
            name: "node-1".into(),
            public_key: key(1),
            epoch: 0,
            port: 51820,
            backend: Backend::Userspace,
            local_addresses: ["127.0.0.1/8", "192.0.2.1/24", "10.244.1.1/24", "172.17.0.1/16"]
                .map(|net| LocalAddress { net: net.parse().unwrap(), mtu: 1500 })
                .to_vec(),
        },
        records: records.collect(),
        settings: Settings { cluster_cidrs: vec![], node_cidrs: vec![], enforcement: Default::default() },
    }
}

fn planned(snapshot: &Snapshot) -> Plan {
    plan(snapshot, &BTreeSet::new())
}

fn blocks(plan: &Plan, net: &str) -> bool {
    let net: IpNet = net.parse().unwrap();
    plan.desired.guard.as_ref().unwrap().remote_pods.iter().any(|blocked| blocked.contains(&net))
}

fn peers(plan: &Plan) -> Vec<&str> {
    plan.peers.values().map(|peer| peer.node.as_str()).collect()
}

#[test]
fn a_sound_mesh_is_believed() {
    let others = [2, 3].map(|n| announced(mk_node(n), &mk_announcement(n)));
    let plan = planned(&mk_snapshot(&others));
    assert_eq!(plan.quarantined, []);
    assert_eq!(plan.problems, Vec::<String>::new());
    assert_eq!(peers(&plan), ["node-2", "node-3"]);
    let tunnel = plan.desired.tunnel.unwrap();
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

#[test]
fn while_a_node_is_in_doubt_nothing_that_is_guarded_is_released() {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    let guarded = BTreeSet::from(["10.244.7.0/24".parse().unwrap()]);
    assert!(!blocks(&plan(&snapshot, &guarded), "10.244.7.0/24"));
    snapshot.records.push(Record::Unreadable { name: "node-7".into(), reason: "garbled".into() });
    let unreadable = plan(&snapshot, &guarded);
    assert!(blocks(&unreadable, "10.244.7.0/24"));
    assert_eq!(peers(&unreadable), ["node-2"]);

    // Nor while a node lost its pod CIDRs, or has one that is not believed.
    for cidrs in [vec![], vec!["10.244.7.0/240".to_owned()], vec!["0.0.0.0/0".to_owned()]] {
        let mut node = mk_node(7);
        node.spec.pod_cidrs = cidrs.clone();
        let snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2)), node]);
        assert!(blocks(&plan(&snapshot, &guarded), "10.244.7.0/24"), "{cidrs:?}");
    }
}

#[test]
fn a_node_that_stands_twice_is_believed_neither_time() {
    let twice = [mk_node(2), mk_node(2)].map(|node| announced(node, &mk_announcement(2)));
    let plan = planned(&mk_snapshot(&twice));
    assert_eq!(peers(&plan), Vec::<&str>::new());
    assert!(plan.quarantined[0].reason.contains("2 times"), "{:?}", plan.quarantined);
}

#[test]
fn without_its_own_node_nothing_is_removed() {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &mk_announcement(2))]);
    snapshot.records.retain(|record| !matches!(record, Record::Node(node) if node.name == "node-1"));
    let plan = planned(&snapshot);
    assert!(plan.hold && plan.desired.tunnel.is_none() && plan.announcement.is_none());
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
        let Some(tunnel) = &plan.desired.tunnel else {
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
