//! The kernel's WireGuard, driven by the adapter: what is written reads back, for the adapter and for `wg`; what is
//! not named is not touched; what is refused is explained.

mod common;
mod devices;
mod interfaces;
mod refusals;
mod sessions;
mod sizes;

use std::process::ExitCode;

use warren_testkit::scenario::{self, Scenario};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("an interface is made and removed, and doing it twice does no harm", interfaces::come_and_go),
    ("what a daemon that was killed left half made is tidied up", interfaces::half_made),
    ("somebody else's interface of the same name is left alone", interfaces::foreign),
    ("a device reads back as it was configured, for us and for wg", devices::round_trip),
    ("what somebody else changed reads back as changed", devices::foreign_changes),
    ("a device that changes while it is read is read again", devices::interrupted),
    ("500 peers of four networks are configured from nothing in under 2 s", sizes::five_hundred_peers),
    ("tens of thousands of allowed IPs on one peer, which move and go", sizes::one_large_peer),
    ("a session survives whatever else changes: no ping is lost", sessions::changes_of_others),
    ("a peer's allowed IPs come and go under its traffic: no ping is lost", sessions::own_allowed_ips),
    (
        "a network that is in use moves between two peers: every packet finds one of them",
        sessions::used_network_moves,
    ),
    ("a session moves to another endpoint and another port without a handshake", sessions::endpoints),
    ("a taken port is told, whether the device is up or down", refusals::port_taken),
    ("without NET_ADMIN it is said what is missing", refusals::no_right),
    ("without WireGuard in the kernel it is said what to do", refusals::no_wireguard),
];

fn main() -> ExitCode {
    if refusals::is_asked_to_probe() {
        return refusals::probe();
    }
    scenario::run(&["ip", "ping", "setpriv", "wg"], SCENARIOS)
}
