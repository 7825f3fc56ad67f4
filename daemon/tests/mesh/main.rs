//! What a mesh must withstand, in real namespaces with real traffic: each scenario is a promise, and fails
//! when it is broken. The promises on clear text are those of DESIGN.md, P1; the rest is issue 2.
//!
//! Without Warren the pods of the lab talk in the clear, and every scenario begins by seeing that.
//! `cargo test --test mesh -- 'routes'` runs those with `routes` in their names.

mod accidents;
mod backends;
mod bad_input;
mod bad_nodes;
mod common;
mod forgery;
mod kills;
mod lane_faults;
mod lanes;
mod many;
mod membership;
mod refusals;
mod removal;
mod restarts;
mod shapes;
mod strangers;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a mesh works over every kind of underlay", shapes::underlays),
    ("between pods and nodes traffic is encrypted, too", shapes::pods_and_nodes),
    ("large packets pass, and the underlay carries no fragments", shapes::large_packets),
    ("permissive lets clear text pass and counts it; strict does not", shapes::permissive),
    ("no clear text while the peer has no key yet", membership::peer_without_a_key),
    ("no clear text whatever the order of start-up", membership::any_order_of_start),
    ("no clear text when a node leaves and returns with a new key", membership::leaves_and_returns),
    ("no clear text when warrend is killed", kills::warrend),
    ("no clear text when the tunnel is killed", kills::tunnel),
    ("no clear text when both are killed", kills::both),
    ("without warrend, the guard and the routes hold each without the other", kills::each_layer_holds),
    ("no clear text when the tunnel interface is deleted", accidents::interface_deleted),
    ("no clear text when routes are flushed", accidents::routes_flushed),
    ("no clear text when rules are flushed", accidents::rules_flushed),
    ("no clear text when the guard is deleted", accidents::guard_deleted),
    ("no clear text after other accidents", accidents::others),
    ("a restart of warrend loses no packet", restarts::nothing_is_lost),
    ("an upgrade finds another version's guard, and loses no packet", restarts::upgrades),
    ("Warren is taken off a cluster, and back, and no packet is lost", removal::loses_nothing),
    ("a forged packet reaches no pod", forgery::from_the_underlay),
    ("bad input is quarantined, and the others go on", bad_input::with_cluster_cidrs),
    ("bad input is quarantined, also without --cluster-cidrs", bad_input::without_cluster_cidrs),
    ("a node changes its backend: the same key, and one handshake", backends::change),
    ("a node with lanes changes its backend: the same key, and one handshake", backends::change_with_lanes),
    ("--backend auto takes the kernel's WireGuard, or says why it cannot", backends::auto),
    ("a foreign interface with the tunnel's name is left alone and told", backends::name_taken),
    (
        "a foreign TUN with the tunnel's name is left alone while the sockets cannot be read",
        backends::name_taken_unseen,
    ),
    ("a UDP port that somebody else has is told, and taken when it is free", backends::port_taken),
    ("without NET_ADMIN warrend says so, changes nothing, and tries again", backends::no_right),
    ("--backend kernel without WireGuard in the kernel is told, and nothing leaks", backends::no_module),
    ("flows spread evenly over the lanes, and each keeps to its own", lanes::spread),
    (
        "flows spread evenly over the lanes under strict reverse-path filters",
        lanes::spread_under_strict_filters,
    ),
    ("warren-perf says which lane a flow takes", lanes::shown),
    ("flows that the kernel does not spread over the lanes are told", lanes::not_spread),
    (
        "flows stay spread over the lanes whoever resets that, and are as before without",
        lanes::spread_is_kept,
    ),
    ("the number of lanes changes, and no packet is lost", lanes::number_changes),
    (
        "the number of lanes changes under strict reverse-path filters, and no packet is lost",
        lanes::number_changes_under_strict_filters,
    ),
    ("a lane that a firewall blocks carries nothing until it is open", lanes::blocked),
    ("a lane whose port is taken is told, and the others carry traffic", lane_faults::port_taken),
    ("a lane whose name is taken is told, and is no reason to kill the others", lane_faults::name_taken),
    ("all lanes are there after a restart of their container", lane_faults::container),
    ("a lane that is killed comes back, and the others stay", lane_faults::killed),
    ("a lane that hangs is replaced, and the others stay", lane_faults::hung),
    ("guard and routes are kept in order while the sockets cannot be read", lane_faults::sockets_unreadable),
    ("a tunnel that refuses its peers is told and asked again, and nothing leaks", refusals::changes),
    ("200 nodes converge in 3 s, one change in 200 ms", many::two_hundred_nodes),
];

fn main() -> ExitCode {
    scenario::run(&["ip", "iperf3", "mount", "nft", "ping", "setpriv", "wg"], SCENARIOS)
}
