//! The program `warren-tunnel` in real namespaces, against wireguard-go and under the tools people use.

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

#[path = "scenarios/checksums.rs"]
mod checksums;
#[path = "scenarios/demand.rs"]
mod demand;
#[path = "scenarios/ecn.rs"]
mod ecn;
#[path = "scenarios/flood.rs"]
mod flood;
#[path = "scenarios/interop.rs"]
mod interop;
#[path = "scenarios/lanes.rs"]
mod lanes;
#[path = "scenarios/lifecycle.rs"]
mod lifecycle;
#[path = "scenarios/live.rs"]
mod live;
#[path = "scenarios/memory.rs"]
mod memory;
#[path = "scenarios/netns.rs"]
mod netns;
#[path = "scenarios/offloads.rs"]
mod offloads;
#[path = "scenarios/site.rs"]
mod site;
#[path = "scenarios/switches.rs"]
mod switches;
#[path = "scenarios/wg_tools.rs"]
mod wg_tools;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("wireguard-go as responder, IPv4", interop::initiator_v4),
    ("wireguard-go as responder, IPv6", interop::initiator_v6),
    ("wireguard-go as initiator, IPv4", interop::responder_v4),
    ("wireguard-go as initiator, IPv6", interop::responder_v6),
    ("wg show, set, showconf, setconf, syncconf", wg_tools::wg),
    ("wg-quick up and down", wg_tools::wg_quick),
    ("20,000 allowed IPs through wg", wg_tools::many_allowed_ips),
    ("errors reach wg as errors and change nothing", wg_tools::refusals),
    ("the mark changes under ping", live::mark),
    ("the port changes under ping", live::port),
    ("a taken port is refused and the old one stays", live::taken_port),
    ("PSK, endpoint and peers change under ping", live::peers),
    ("answers come from the address that was asked", live::second_address),
    ("the MTU of the interface is honoured", live::mtu),
    ("packets larger than the path are fragmented", live::fragments),
    ("IPv6 may be switched off", live::without_ipv6),
    ("an interface that was moved and renamed is not mixed up with a namesake", live::namesake),
    ("super-packets are used", offloads::used),
    ("VXLAN in the tunnel comes in super-packets", offloads::vxlan),
    ("offloads switched off on either side give the same bytes", switches::same_bytes),
    ("runs of datagrams that are larger than the link", offloads::larger_than_the_link),
    ("64 MiB through a relay that loses, doubles and reorders", offloads::lossy_relay),
    ("super-packets of UDP and single datagrams are the same bytes", offloads::udp_segmentation),
    ("marks of congestion pass in super-packets and come back", ecn::marks),
    ("wrong checksums are never repaired", checksums::wrong),
    ("four lanes against one of wireguard-go", lanes::four_against_go),
    ("four lanes against four", lanes::four_against_four),
    ("no packet overtakes another of its flow", lanes::order),
    ("removal of the socket ends it", lifecycle::socket_removed),
    ("deletion of the interface ends it", lifecycle::interface_deleted),
    ("SIGTERM and SIGINT end it", lifecycle::signals),
    ("root of a user namespace has an interface", lifecycle::user_namespace),
    ("a second instance is refused", lifecycle::second_instance),
    ("a stale socket is replaced", lifecycle::stale_socket),
    ("errors reach the caller", lifecycle::errors),
    ("silent and slow clients hold nobody up", lifecycle::silent_clients),
    ("an idle tunnel costs nothing", lifecycle::idle),
    ("sockets of tunnels on demand are root's alone, and nothing is left of them", demand::sockets),
    ("tunnels on demand whose names are taken are tried without haste", demand::taken_names),
    ("a probe of many tunnels takes no longer than of one", demand::probe),
    ("what waits for peers that are away has a limit", memory::peers_away),
    ("peers come and go, and nothing is left of them", memory::come_and_go),
    ("a flood of bad input", flood::flood),
    ("wireguard-go's own test script can fail", netns::shipped_script_can_fail),
    ("wireguard-go's own test script", netns::shipped_script),
];

fn main() -> ExitCode {
    scenario::run(&["ethtool", "ip", "iperf3", "nft", "ping", "wg", "wireguard-go"], SCENARIOS)
}
