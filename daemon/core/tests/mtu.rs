//! How large packets to a peer may be: its own word, and the path between.

mod common;

use std::net::IpAddr;

use warren_api::Announcement;
use warren_core::*;

use common::*;

/// The MTU of the routes to node 2's pods, IPv4 and IPv6, where `announced` is its own word and `path` what gets
/// there. Node 1 has a link of 1500 bytes, and tunnels of 1440.
fn mtus(mtu: u32, path: Option<u32>) -> [Option<u32>; 2] {
    let mut snapshot = mk_snapshot(&[announced(mk_node(2), &Announcement { mtu, ..mk_announcement(2) })]);
    snapshot.paths = path.map(|path| (IpAddr::from([192, 0, 2, 2]), path)).into_iter().collect();
    let plan = planned(&snapshot);
    assert_eq!(peers(&plan), ["node-2"]);
    assert!(blocks(&plan, "10.244.2.0/24"));
    ["10.244.2.0/24", "fd00:2::/64"].map(|net| {
        let net = net.parse().unwrap();
        plan.desired
            .routes
            .iter()
            .find_map(|route| match &route.kind {
                RouteKind::Tunnel { mtu, .. } if route.destination == net => Some(*mtu),
                _ => None,
            })
            .expect("a route to the pods")
    })
}

#[test]
fn a_route_says_what_the_narrowest_takes() {
    assert_eq!(mtus(1440, None), [None; 2]);
    assert_eq!(mtus(8940, None), [None; 2], "the own link is the narrowest");
    assert_eq!(mtus(1328, None), [Some(1328); 2]);
    assert_eq!(mtus(1440, Some(1404)), [Some(1344); 2]);
    assert_eq!(mtus(1296, Some(1400)), [Some(1296); 2]);
    assert_eq!(mtus(1440, Some(1500)), [None; 2]);
}

#[test]
fn the_largest_packets_fit_also_once_they_are_padded() {
    assert_eq!(mtus(1440, Some(1400)), [Some(1328); 2], "1340 would become 1344, and 1404 with its headers");
    assert_eq!(mtus(1439, None), [Some(1424); 2]);
}

#[test]
fn no_word_makes_packets_smaller_than_every_network_carries() {
    for (mtu, path) in [(1440, Some(552)), (1440, Some(0)), (0, None), (68, Some(68))] {
        assert_eq!(mtus(mtu, path), [Some(576), Some(1280)], "{mtu}, {path:?}");
    }
}
