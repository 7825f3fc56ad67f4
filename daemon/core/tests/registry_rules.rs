//! What a cluster knows besides its nodes: service addresses, the API server, an operator's word.

mod common;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_api::node::Node;
use warren_api::status::Enforcement;
use warren_api::{Announcement, annotations, names};
use warren_core::*;

use common::*;

const LABEL: &str = "node-role.kubernetes.io/control-plane";

fn mk_cluster(others: &[Node]) -> Snapshot {
    let mut snapshot = mk_snapshot(others);
    snapshot.settings.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    snapshot.settings.api_servers = vec!["192.0.2.100".parse().unwrap(), "10.96.0.1".parse().unwrap()];
    snapshot
}

fn with_pods(n: u8, cidr: &str) -> Node {
    let mut node = mk_node(n);
    node.spec.pod_cidrs = vec![cidr.to_owned()];
    let announcement = Announcement { pod_cidrs: vec![cidr.parse().unwrap()], ..mk_announcement(n) };
    announced(node, &announcement)
}

fn with_address(n: u8, address: &str) -> Node {
    let mut node = mk_node(n);
    node.status.addresses[0].address = address.to_owned();
    announced(node, &Announcement { endpoints: vec![address.parse().unwrap()], ..mk_announcement(n) })
}

fn routed(plan: &Plan, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    plan.desired.routes.iter().any(|route| route.destination.contains(&address))
        || plan.desired.guard.iter().any(|guard| {
            guard.remote_pods.iter().chain(&guard.remote_nodes).any(|net: &IpNet| net.contains(&address))
        })
}

#[test]
fn nobody_has_the_services_or_the_api_server() {
    let bystander = announced(mk_node(3), &mk_announcement(3));
    for (node, reason, addresses) in [
        (with_pods(2, "10.96.0.0/12"), "service addresses 10.96.0.0/12", ["10.96.0.1", "10.100.0.1"]),
        (with_pods(2, "10.97.3.0/24"), "service addresses 10.96.0.0/12", ["10.97.3.1", "10.97.3.9"]),
        (with_pods(2, "10.64.0.0/10"), "service addresses 10.96.0.0/12", ["10.96.0.1", "10.111.0.1"]),
        (with_pods(2, "192.0.2.96/28"), "the API server's address 192.0.2.100", ["192.0.2.100", "10.96.0.1"]),
        (with_address(2, "10.99.1.1"), "among the service addresses", ["10.99.1.1", "10.96.0.1"]),
        (with_address(2, "192.0.2.100"), "is the API server's", ["192.0.2.100", "10.96.0.1"]),
    ] {
        let plan = planned(&mk_cluster(&[node, bystander.clone()]));
        assert_eq!(peers(&plan), ["node-3"], "{reason}");
        let found = &plan.quarantined[0];
        assert!(found.node == "node-2" && found.reason.contains(reason), "{found:?}");
        for address in addresses {
            assert!(!routed(&plan, address), "{reason}: {address} is cut off");
        }
    }
}

#[test]
fn the_control_plane_may_have_the_api_servers_address() {
    let mut node = with_address(2, "192.0.2.100");
    node.metadata.labels.insert(LABEL.into(), String::new());
    let plan = planned(&mk_cluster(&[node]));
    assert_eq!(peers(&plan), ["node-2"]);
    assert!(plan.desired.routes.iter().any(|route| route.table == names::NODES_TABLE));
}

#[test]
fn the_cluster_range_may_hold_the_services_which_stay_reachable() {
    let mut snapshot = mk_cluster(&[]);
    snapshot.settings.cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    let plan = planned(&snapshot);
    assert!(!routed(&plan, "10.96.0.1") && !routed(&plan, "10.111.255.254"));
    assert!(routed(&plan, "10.95.255.254") && routed(&plan, "10.112.0.1"));
}

#[test]
fn a_service_range_that_holds_pods_opens_nothing() {
    let others = [2, 3].map(|n| announced(mk_node(n), &mk_announcement(n)));
    for range in ["10.0.0.0/8", "10.244.2.0/23", "10.244.0.0/16"] {
        let mut snapshot = mk_cluster(&others);
        snapshot.settings.service_cidrs = vec![range.parse().unwrap()];
        let plan = planned(&snapshot);
        assert!(
            plan.problems.iter().any(|problem| problem.contains("mistyped")),
            "{range}: {:?}",
            plan.problems
        );
        assert_eq!(peers(&plan), ["node-2", "node-3"], "{range}");
        assert!(blocks(&plan, "10.244.2.0/24") && blocks(&plan, "10.244.3.0/24"), "{range}");
    }
}

#[test]
fn no_pod_cidr_cuts_a_node_off_its_control_plane() {
    let mut control_plane = announced(mk_node(3), &mk_announcement(3));
    control_plane.metadata.labels.insert(LABEL.into(), String::new());
    // In a pod the daemon knows only the service's address.
    let mut snapshot = mk_snapshot(&[with_pods(2, "192.0.2.3/32"), control_plane]);
    snapshot.settings.api_servers = vec!["10.96.0.1".parse().unwrap()];
    let retained = Guard { remote_pods: ["192.0.2.3/32".parse().unwrap()].into(), ..Guard::default() };
    for standing in [Guard::default(), retained] {
        let plan = plan(&snapshot, &Standing { guard: standing, ..Standing::default() });
        assert_eq!(peers(&plan), ["node-3"], "{:?}", plan.quarantined);
        let server: IpAddr = "192.0.2.3".parse().unwrap();
        let cut_off = |route: &Route| route.table == names::PODS_TABLE && route.destination.contains(&server);
        assert!(!plan.desired.routes.iter().any(cut_off));
    }
}

/// Node 3 poses as a node of the control plane whose address is that of a pod of node 2.
fn posing(address: &str) -> [Node; 2] {
    let mut liar = with_address(3, address);
    liar.metadata.labels.insert(LABEL.into(), String::new());
    [announced(mk_node(2), &mk_announcement(2)), liar]
}

#[test]
fn no_label_of_the_control_plane_opens_the_guard() {
    let ranges = |range: &str| vec![range.parse().unwrap()];
    let nodes_only = Settings { node_cidrs: ranges("192.0.2.0/24"), ..Settings::default() };
    let cluster = Settings { cluster_cidrs: ranges("10.244.0.0/16"), ..Settings::default() };
    for settings in [Settings::default(), nodes_only, cluster] {
        let mut snapshot = mk_snapshot(&posing("10.244.2.7"));
        snapshot.settings = settings.clone();
        let plan = planned(&snapshot);
        assert!(blocks(&plan, "10.244.2.7/32") && routed(&plan, "10.244.2.7"), "{settings:?}");
        assert_eq!(peers(&plan), ["node-2"], "{settings:?}: {:?}", plan.quarantined);
    }
}

#[test]
fn nor_where_pods_are_in_the_subnet_of_the_nodes() {
    let mut own = mk_node(1);
    own.status.addresses[0].address = "10.0.0.1".into();
    let mut snapshot = mk_snapshot(&[]);
    snapshot.own.local_addresses[1].net = "10.0.0.1/8".parse().unwrap();
    let records = posing("10.244.2.7").map(|node| Record::Node(Arc::new((&node).into())));
    snapshot.records = [Record::Node(Arc::new((&own).into()))].into_iter().chain(records).collect();
    assert!(blocks(&planned(&snapshot), "10.244.2.7/32"));
    // What was a node's pods' stays guarded when the node is gone.
    snapshot.records.remove(1);
    let guard = Guard { remote_pods: ["10.244.2.0/24".parse().unwrap()].into(), ..Guard::default() };
    assert!(blocks(&plan(&snapshot, &Standing { guard, ..Standing::default() }), "10.244.2.7/32"));
}

#[test]
fn a_node_of_the_control_plane_in_quarantine_opens_nothing() {
    let mut control_plane = announced(mk_node(3), &mk_announcement(3));
    control_plane.metadata.labels.insert(LABEL.into(), String::new());
    let node = with_pods(2, "192.0.2.3/32");
    assert!(!blocks(&planned(&mk_snapshot(&[node.clone(), control_plane.clone()])), "192.0.2.3/32"));
    control_plane.metadata.annotations.insert(annotations::QUARANTINE.into(), "lost".into());
    assert!(blocks(&planned(&mk_snapshot(&[node, control_plane])), "192.0.2.3/32"));
}

#[test]
fn no_pod_cidr_outside_the_clusters_is_believed() {
    let others = [with_pods(2, "10.9.2.0/24"), announced(mk_node(3), &mk_announcement(3))];
    let mut snapshot = mk_snapshot(&others);
    assert_eq!(peers(&planned(&snapshot)), ["node-2", "node-3"]);
    snapshot.settings.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let plan = planned(&snapshot);
    assert_eq!(peers(&plan), ["node-3"]);
    let [found] = &plan.quarantined[..] else { panic!("{:?}", plan.quarantined) };
    let reason = "its pod CIDR 10.9.2.0/24 is outside --cluster-cidrs";
    assert_eq!((found.node.as_str(), found.reason.as_str()), ("node-2", reason));
    let into_tunnel = |route: &Route| {
        matches!(route.kind, RouteKind::Tunnel { .. }) && route.destination.to_string().starts_with("10.9.")
    };
    assert!(!plan.desired.routes.iter().any(into_tunnel));
}

#[test]
fn an_operators_quarantine_frees_whom_the_liar_harmed() {
    let stolen = Announcement { epochs: mk_announcement(3).epochs, ..mk_announcement(2) };
    let (mut liar, victim) = (announced(mk_node(2), &stolen), announced(mk_node(3), &mk_announcement(3)));
    assert_eq!(peers(&planned(&mk_snapshot(&[liar.clone(), victim.clone()]))), Vec::<&str>::new());
    liar.metadata.annotations.insert(annotations::QUARANTINE.into(), "liar".into());
    assert_eq!(peers(&planned(&mk_snapshot(&[liar, victim]))), ["node-3"]);
}

#[test]
fn an_operator_quarantines_a_node_whose_pods_stay_blocked() {
    let mut node = announced(mk_node(2), &mk_announcement(2));
    node.metadata.annotations.insert(annotations::QUARANTINE.into(), "stolen".into());
    let plan = planned(&mk_cluster(&[node]));
    assert!(peers(&plan).is_empty());
    assert!(plan.quarantined[0].reason.contains("operator: \"stolen\""), "{:?}", plan.quarantined);
    assert!(blocks(&plan, "10.244.2.0/24"));
}

fn leaving(others: &[Node], enforcement: Enforcement) -> Plan {
    let mut snapshot = mk_snapshot(others);
    snapshot.settings.withdraw = true;
    snapshot.settings.enforcement = enforcement;
    planned(&snapshot)
}

#[test]
fn who_withdraws_receives_until_nobody_else_announces() {
    let other = announced(mk_node(2), &mk_announcement(2));
    let plan = leaving(std::slice::from_ref(&other), Enforcement::Permissive);
    assert_eq!((plan.withdrawal, plan.announcement), (Withdrawal::Leaving, None));
    assert_eq!(plan.desired.tunnels["warren-a0"].peers.len(), 1, "what others still send arrives");
    assert!(plan.desired.routes.is_empty(), "nothing is sent through the tunnel: {:?}", plan.desired.routes);

    let refuted = announced(mk_node(2), &Announcement { uid: "another".into(), ..mk_announcement(2) });
    let plan = leaving(&[refuted], Enforcement::Permissive);
    assert_eq!(plan.withdrawal, Withdrawal::Leaving, "who is not believed here may still send");

    let plan = leaving(&[mk_node(2)], Enforcement::Permissive);
    assert_eq!((plan.withdrawal, plan.desired), (Withdrawal::Done, Desired::default()));
}

#[test]
fn a_strict_node_does_not_leave() {
    let plan = leaving(&[announced(mk_node(2), &mk_announcement(2))], Enforcement::Strict);
    assert_eq!(plan.withdrawal, Withdrawal::None);
    assert!(plan.announcement.is_some() && plan.problems[0].contains("permissive"), "{:?}", plan.problems);
}
