//! How large packets may be, in real namespaces with real traffic: whatever the links between the nodes take, what
//! pods send arrives, or its sender is told. Each scenario is a promise; in each, no packet is in the clear.
//!
//! `cargo test --test paths -- 'jumbo'` runs those with `jumbo` in their names.

mod common;
mod links;
mod routers;
mod sizes;
mod wire;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("where all links are equal, packets fill the tunnel", links::equal),
    ("TCP passes where pods hear no ICMP: its segments are clamped to the tunnel", links::deaf_pods),
    ("IPv6 pods use an IPv4 underlay, and IPv4 pods an IPv6 underlay", links::other_family),
    ("a node with a smaller link is sent no larger packets, and the others are", links::one_smaller),
    ("a jumbo underlay is used", links::jumbo),
    ("a jumbo underlay is used by four lanes", links::jumbo_over_lanes),
    ("jumbo and other nodes together send each other what the smaller takes", links::mixed_jumbo),
    ("no path seems narrow when what nodes send each other becomes encrypted", links::hosts_switched),
    ("a smaller network behind a tunnel makes itself known through it", links::smaller_pods),
    ("a narrow link in the middle of an IPv4 path is found", routers::narrow_v4),
    ("a narrow link in the middle of an IPv6 path is found", routers::narrow_v6),
    ("a narrow link in the middle of an IPv4 path is found for four lanes", routers::narrow_v4_over_lanes),
    ("a narrow link in the middle of an IPv6 path is found for four lanes", routers::narrow_v6_over_lanes),
    ("a narrow path is found where what nodes send each other is encrypted, too", routers::narrow_for_hosts),
    ("a restart of warrend forgets no narrow path", routers::restart),
    ("a path that grows is used", routers::grows),
    ("a middle box that swallows ICMP fragments IPv4, and no packet is lost", routers::silent_v4),
    ("a middle box that swallows ICMP on IPv6 is mended with a route's MTU", routers::silent_v6),
];

fn main() -> ExitCode {
    scenario::run(&["ip", "nft", "ping", "wg"], SCENARIOS)
}
