//! The fake API server, driven by a client that knows nothing of it: the one that `warrend` uses.

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

#[path = "apiserver/cluster.rs"]
mod cluster;
#[path = "apiserver/listing.rs"]
mod listing;
#[path = "apiserver/watching.rs"]
mod watching;
#[path = "apiserver/writing.rs"]
mod writing;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a list comes in pages of one version", listing::pages),
    ("older servers answer version 0 whole", listing::whole_from_the_cache),
    ("a version yet to come is waited for in vain", listing::future_versions),
    ("nodes are as large as in reality", listing::realistic_size),
    ("a watch tells what happens", watching::tells),
    ("a heartbeat is an event even to who watches metadata", watching::heartbeats),
    ("server-side apply keeps owners apart", writing::owners),
    ("a taint is deleted by its key", writing::taints),
];

fn main() -> ExitCode {
    scenario::run(&["ip"], SCENARIOS)
}
