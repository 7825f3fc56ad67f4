//! Warren against a real Kubernetes API server: each scenario is a promise of issue 3, and fails when it is
//! broken. The server, its etcd and three nodes are started by each scenario, in namespaces.
//!
//! `make test-kubernetes` gets the server and runs these alone;
//! `cargo test --test kubernetes -- 'compacted'` runs those with `compacted` in their names.

mod cluster;
#[path = "../mesh/common.rs"]
#[allow(dead_code, reason = "shared with the scenarios of `mesh`, which use all of it")]
mod common;
mod rights;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("the daemon's rights are enough and not more", rights::of_the_daemon),
    ("the operator's rights are enough and not more", rights::of_the_operator),
    ("the auditor's rights are enough and not more", rights::of_the_auditor),
];

fn main() -> ExitCode {
    scenario::run(&["ip", "nft", "ping", "setpriv", "wg"], SCENARIOS)
}
