//! What nodes themselves send and get, and who else configures them: each scenario is a promise of issue 4, "Host
//! traffic" and "Coexistence", and fails when it is broken.
//!
//! Every path is gone first without Warren, where it works and is seen in the clear.

mod coexistence;
mod collisions;
mod common;
mod encrypt_host;
mod exchange;
mod kube_proxy;
mod pods_and_nodes;
mod services;
mod trouble;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "pods and other nodes' addresses: encrypted, with kube-proxy's rules of every kind",
        pods_and_nodes::both_ways,
    ),
    ("Services by their addresses: encrypted, from pods and from nodes", services::by_cluster_ip),
    ("NodePorts: encrypted between nodes, from outside and from pods", services::by_node_port),
    ("NodePorts with externalTrafficPolicy Local keep the client's address", services::local_policy),
    ("--encrypt-host: nothing but WireGuard between nodes", encrypt_host::everything),
    (
        "--encrypt-host: the API server stays in the clear, by address and by Service",
        encrypt_host::api_server,
    ),
    ("--encrypt-host: pairs need both, and labelled nodes are left out", encrypt_host::pairs),
    ("--encrypt-host: switched on and off, and restarted, under a flood", encrypt_host::switching),
    ("--encrypt-host: taken off the nodes, it leaves their settings as they were", encrypt_host::taken_off),
    (
        "--encrypt-host: with wrong tunnels the API server is reached, and nothing leaks",
        trouble::wrong_tunnels,
    ),
    ("--encrypt-host: nobody gets around it by marks, interfaces or addresses", trouble::ways_around),
    ("a host-gateway CNI's routes, from before and after", coexistence::host_gateway),
    ("a VXLAN overlay", coexistence::vxlan),
    ("others' marks and rules", coexistence::marks_and_rules),
    ("what somebody else has already is told at start, and nothing written", collisions::are_told),
    ("other numbers than the documented ones", collisions::are_avoided),
];

fn main() -> ExitCode {
    scenario::run(&["ip", "iptables-legacy", "iptables-nft", "nft", "ping", "wg"], SCENARIOS)
}
