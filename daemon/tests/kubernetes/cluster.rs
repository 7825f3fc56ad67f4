//! A lab with a Kubernetes API server, and what the scenarios ask of the server.

use warren_testkit::lab::{Plan, Registry};

/// Three nodes with two pods each.
pub fn three_nodes() -> Plan {
    Plan { registry: Registry::Kubernetes, ..Plan::default() }
}

/// Two nodes with two pods each.
pub fn two_nodes() -> Plan {
    Plan { nodes: 2, ..three_nodes() }
}
