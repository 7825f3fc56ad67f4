//! Warren against a real Kubernetes API server: each scenario is a promise of issue 3, and fails when it is
//! broken. The server, its etcd and three nodes are started by each scenario, in namespaces.
//!
//! `make test-kubernetes` gets the server and runs these alone;
//! `cargo test --test kubernetes -- 'compacted'` runs those with `compacted` in their names.

mod cluster;
#[path = "../mesh/common.rs"]
#[allow(dead_code, reason = "shared with the scenarios of `mesh`, which use all of it")]
mod common;
mod containers;
mod contradictions;
mod encrypted_hosts;
mod events;
mod lies;
mod membership;
mod outages;
mod removal;
mod rights;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("three daemons find each other, and their pods talk", membership::find_each_other),
    ("the daemon may be there before the API server", membership::before_the_api_server),
    ("a node without Warren", membership::without_warren),
    ("a node whose pod CIDRs come late", membership::late_pod_cidrs),
    ("a cordoned node", membership::cordoned),
    ("a Node made anew under its name, with the same and with other pod CIDRs", membership::made_anew),
    ("the daemon's rights are enough and not more", rights::of_the_daemon),
    ("the operator's rights are enough and not more", rights::of_the_operator),
    ("the auditor's rights are enough and not more", rights::of_the_auditor),
    (
        "all works with the rights of the manifest, each container for itself",
        containers::rights_of_the_manifest,
    ),
    (
        "the container as the kubelet starts it finds its cluster and settings",
        containers::as_the_kubelet_starts_it,
    ),
    ("the startup taint goes once the node's traffic is safe, and not before", containers::startup_taint),
    ("nothing is lost while the API server is killed and restarted", outages::killed),
    ("nothing is lost while the API server is paused", outages::paused),
    ("nothing is lost while the API server is cut off", outages::cut_off),
    ("nothing is lost while the API server is slow", outages::slowed),
    ("nothing is lost while etcd is away", outages::etcd_away),
    ("nothing is lost when history is compacted in mid-watch", outages::compacted),
    (
        "with wrong tunnels and --encrypt-host, a node reads a peer's new key from the API server on another node",
        encrypted_hosts::mend_themselves,
    ),
    ("one key announced twice", lies::one_key_twice),
    ("one pod CIDR announced twice", lies::one_cidr_twice),
    ("two daemons with one key", contradictions::one_key),
    ("two daemons with one pod CIDR", contradictions::one_pod_cidr),
    ("an operator takes a node out and back in", contradictions::operators_quarantine),
    ("an announcement garbled by hand is not obeyed, and put right", lies::garbled),
    ("an annotation removed by hand is put back", lies::removed),
    ("an announcement that another tool owns is taken back", lies::taken_over),
    ("Events tell of quarantines and keys", events::quarantine_and_keys),
    ("Events tell of clear text", events::clear_text),
    ("Events tell of a fallback to userspace", events::fallback),
    ("Warren is taken off the cluster without losing a packet", removal::loses_nothing),
];

fn main() -> ExitCode {
    scenario::run(&["ip", "mount", "nft", "ping", "setpriv", "unshare", "wg"], SCENARIOS)
}
