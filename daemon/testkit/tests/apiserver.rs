//! The fake API server, driven by a client that knows nothing of it: the one that `warrend` uses.

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

#[path = "apiserver/cluster.rs"]
mod cluster;
#[path = "apiserver/faults.rs"]
mod faults;
#[path = "apiserver/gone.rs"]
mod gone;
#[path = "apiserver/listing.rs"]
mod listing;
#[path = "apiserver/load.rs"]
mod load;
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
    ("bookmarks come in time and before the end", watching::bookmarks),
    ("too old a version is gone", gone::too_old),
    ("a watch is expired in its middle", gone::mid_watch),
    ("server-side apply keeps owners apart", writing::owners),
    ("an announcement of before belongs to warrend", writing::announced_before),
    ("a taint is deleted by its key", writing::taints),
    ("events are recorded", writing::events),
    ("requests wait, fail and are not let in", faults::requests),
    ("a stall is silence, not an end", faults::stalls),
    ("connections are cut, refused and taken again", faults::connections),
    ("garbage is seen as garbage", faults::garbage),
    ("plain HTTP is spoken when asked for", faults::plain),
    ("5,000 nodes cost the fake little", load::five_thousand_nodes),
];

fn main() -> ExitCode {
    scenario::run(&["ip"], SCENARIOS)
}
