//! The registry in Kubernetes against an API server with every fault on demand: what is known holds through
//! all of them, and what changed meanwhile is known soon after.

mod faults;
mod publishing;
mod site;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("one list, one watch, and heartbeats cost nothing", faults::heartbeats),
    ("one question for each new announcement, node, or change of either", faults::changes),
    ("a watch that ends goes on where it stopped", faults::ends),
    ("after 410 only metadata are listed, and what was missed is found", faults::gone),
    ("a server restored from a backup is listed anew", faults::restored),
    ("garbage in the watch is survived", faults::garbage),
    ("errors, throttling and slowness are waited out", faults::errors),
    ("while the server is overloaded, it is asked ever more rarely", faults::overloaded),
    ("a quiet watch goes on, a silent one is given up", faults::silence),
    ("history compacted between two pages of a list", faults::compacted_list),
    ("a Node that may not be read is said, and not believed", faults::unread),
    ("a ServiceAccount's token is replaced", faults::new_token),
    ("while the server is away, what is known holds", faults::away),
    ("without a server there is no list, and the reason is said", faults::never_there),
    ("a refused token and a missing right say what to do", faults::refused),
    ("announced once, and nothing written while nothing changes", publishing::once),
    ("what others write or remove is put right, ever more slowly", publishing::contested),
    ("a Node made anew is announced anew, its predecessor's is not touched", publishing::made_anew),
    ("where server-side apply fails, annotations are merged", publishing::without_apply),
    ("the startup taint goes when the node is ready, and no other", publishing::taint),
    ("happenings become Events, and few of them", publishing::events),
    ("what cannot be told is told later", publishing::late_events),
];

fn main() -> ExitCode {
    scenario::run(&["ip"], SCENARIOS)
}
