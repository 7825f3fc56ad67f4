//! Three nodes and what they say, for the tests of the plan.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_api::node::{Address, Metadata, Node, Spec, Status};
use warren_api::{Announcement, Backend, EpochKey, PublicKey, annotations};
use warren_core::*;

pub fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

/// Node n: address 192.0.2.n, pods 10.244.n.0/24 and fd00:n::/64, key [n; 32].
pub fn mk_node(n: u8) -> Node {
    Node {
        metadata: Metadata { name: format!("node-{n}"), uid: format!("uid-{n}"), ..Default::default() },
        spec: Spec {
            pod_cidrs: vec![format!("10.244.{n}.0/24"), format!("fd00:{n}::/64")],
            ..Spec::default()
        },
        status: Status {
            addresses: vec![
                Address { kind: "InternalIP".into(), address: format!("192.0.2.{n}") },
                Address { kind: "Hostname".into(), address: format!("node-{n}") },
            ],
        },
    }
}

pub fn mk_announcement(n: u8) -> Announcement {
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
        fallback: None,
        mtu: 1420,
        encrypts_host: false,
        unknown: Default::default(),
    }
}

pub fn announced(mut node: Node, announcement: &Announcement) -> Node {
    node.metadata.annotations.insert(annotations::ANNOUNCEMENT.into(), announcement.to_json());
    node
}

/// Node 1 looks at `others`.
pub fn mk_snapshot(others: &[Node]) -> Snapshot {
    let own = [mk_node(1)];
    let records = others.iter().chain(&own).map(|node| Record::Node(Arc::new(node.into())));
    Snapshot {
        own: Own {
            name: "node-1".into(),
            public_key: key(1),
            epoch: 0,
            port: 51820,
            backend: Backend::Userspace,
            fallback: None,
            lanes: 1,
            local_addresses: ["127.0.0.1/8", "192.0.2.1/24", "10.244.1.1/24", "172.17.0.1/16"]
                .map(|net| LocalAddress { net: net.parse().unwrap(), link: 2, mtu: 1500 })
                .to_vec(),
        },
        records: records.collect(),
        settings: Settings::default(),
        paths: Default::default(),
    }
}

pub fn planned(snapshot: &Snapshot) -> Plan {
    plan(snapshot, &Standing::default())
}

pub fn blocks(plan: &Plan, net: &str) -> bool {
    let net: IpNet = net.parse().unwrap();
    plan.desired.guard.as_ref().unwrap().remote_pods.iter().any(|blocked| blocked.contains(&net))
}

pub fn peers(plan: &Plan) -> Vec<&str> {
    plan.peers.values().map(|peer| peer.node.as_str()).collect()
}
