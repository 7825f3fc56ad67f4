//! `keyctl status`: what the daemon of this node says of itself.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use warren_api::names;
use warren_api::status::{PeerStatus, RegistryStatus, Status as NodeStatus};

/// `keyctl status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Where the daemon serves its status.
    #[arg(long, default_value = names::HTTP)]
    http: String,
    /// Print the JSON document that the daemon serves.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Prints the status; the exit code says whether the node is ready.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { http, json } = self;
        let text = fetch(&http)?;
        let status: NodeStatus =
            serde_json::from_str(&text).with_context(|| format!("{http} does not speak Warren's status"))?;
        if json {
            println!("{text}");
        } else {
            print!("{}", render(&status));
        }
        Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn fetch(http: &str) -> anyhow::Result<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .http_status_as_error(false)
        .build()
        .into();
    let url = format!("http://{http}/status");
    let mut response =
        agent.get(&url).call().with_context(|| format!("{url} does not answer: does warrend run here?"))?;
    if response.status() != 200 {
        bail!("{url} answers {}: warrend has not read its node's state yet, see its log", response.status());
    }
    Ok(response.body_mut().read_to_string()?)
}

fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    let ready = if status.ready { "ready" } else { "NOT READY" };
    // Writing to a string does not fail.
    let NodeStatus { node, epoch, public_key, backend, interface, mtu, enforcement, .. } = status;
    let _ = writeln!(text, "{node} {ready}, epoch {epoch}, key {public_key} ({backend})");
    let _ = if interface.is_empty() {
        writeln!(text, "no tunnel, {enforcement:?}")
    } else {
        let pods: Vec<String> = status.pod_cidrs.iter().map(ToString::to_string).collect();
        writeln!(text, "{interface} {}, MTU {mtu}, {enforcement:?}", pods.join(" "))
    };
    if status.spread_by_ports == Some(false) {
        let _ = writeln!(
            text,
            "{} lanes, of which all flows between two pods share one: set net.ipv4.fib_multipath_hash_policy=1 and \
             net.ipv6.fib_multipath_hash_policy=1 on this node",
            status.lanes
        );
    }
    for problem in &status.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    if status.withdrawn {
        let _ = writeln!(text, "leaves the mesh: what this node's pods send is NOT encrypted");
    }
    if let Some(registry) = &status.registry {
        let RegistryStatus { source, last_contact_age: age, trouble, .. } = registry;
        let _ = match trouble {
            None => writeln!(text, "registry: {source}, last heard {age:.0} s ago"),
            Some(trouble) => {
                writeln!(
                    text,
                    "registry: NO CONTACT with {source} for {age:.0} s, what is known holds: {trouble}"
                )
            }
        };
    }
    let guard = status.guard;
    let _ = writeln!(
        text,
        "stopped in the clear: {} out to pods, {} out to nodes, {} in from pods, {} in from nodes\n",
        guard.out_pod, guard.out_node, guard.in_pod, guard.in_node
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "PEER",
        "KEY",
        "ENDPOINT",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
    ]);
    table.add_rows(status.peers.iter().map(row));
    table.add_rows(status.waiting.iter().map(|node| [node.as_str(), "-", "no key announced yet"]));
    let _ = writeln!(text, "{table}");
    for quarantined in &status.quarantined {
        let _ = writeln!(text, "quarantined: {}: {}", quarantined.node, quarantined.reason);
    }
    text
}

fn row(peer: &PeerStatus) -> [String; 6] {
    [
        peer.node.clone(),
        peer.public_key.fingerprint(),
        peer.endpoint.map_or("-".into(), |endpoint| endpoint.to_string()),
        peer.handshake_age.map_or("never".into(), |age| format!("{age:.0} s ago")),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
    ]
}

/// A number of bytes in the largest binary unit that leaves a digit before the point.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (1..UNITS.len()).take_while(|unit| number >> (10 * unit) > 0).last().unwrap_or(0);
    match unit {
        0 => format!("{number} B"),
        _ => format!("{:.1} {}", number as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::status::{Enforcement, GuardCounters, Quarantined};
    use warren_api::{Backend, PublicKey};

    fn mk_status() -> NodeStatus {
        let key = PublicKey::from_bytes([7; 32]).unwrap();
        NodeStatus {
            node: "node-1".into(),
            public_key: key,
            epoch: 3,
            backend: Backend::Userspace,
            interface: "warren-b0".into(),
            fallback: None,
            lanes: 4,
            spread_by_ports: Some(false),
            mtu: 1420,
            enforcement: Enforcement::Strict,
            ready: false,
            problems: vec!["nft is missing".into()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            endpoints: vec![],
            peers: vec![PeerStatus {
                node: "node-2".into(),
                public_key: key,
                backend: Backend::Userspace,
                endpoint: Some("192.0.2.2:51820".parse().unwrap()),
                handshake_age: Some(12.4),
                lanes: 1,
                rx_bytes: 1023,
                tx_bytes: 5 << 20,
                allowed_ips: vec![],
            }],
            quarantined: vec![Quarantined { node: "node-9".into(), reason: "a stolen key".into() }],
            waiting: vec!["node-4".into()],
            registry: Some(RegistryStatus {
                source: "https://192.0.2.9:6443/".into(),
                connected: false,
                last_contact_age: 61.0,
                trouble: Some("connection refused".into()),
                unwritten: None,
                requests: Default::default(),
                suppressed_events: 0,
            }),
            withdrawn: true,
            guard: GuardCounters { out_pod: 5, ..GuardCounters::default() },
            tunnel: Default::default(),
        }
    }

    #[test]
    fn everything_an_operator_asks_for_is_shown() {
        let text = render(&mk_status());
        for wanted in [
            "node-1 NOT READY, epoch 3, key BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
            "problem: nft is missing",
            "4 lanes, of which all flows between two pods share one: set net.ipv4.fib",
            "NO CONTACT with https://192.0.2.9:6443/ for 61 s, what is known holds: connection refused",
            "NOT encrypted",
            "stopped in the clear: 5 out to pods",
            "12 s ago",
            "1023 B",
            "5.0 MiB",
            "no key announced yet",
            "quarantined: node-9: a stolen key",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is missing: {text}");
        }
    }

    #[test]
    fn a_node_without_a_tunnel_says_so() {
        let text = render(&NodeStatus { interface: String::new(), ..mk_status() });
        assert!(text.contains("\nno tunnel, Strict\n"), "{text}");
    }

    #[test]
    fn bytes_carry_their_unit() {
        assert_eq!([0, 1024, 1536, u64::MAX].map(bytes), ["0 B", "1.0 KiB", "1.5 KiB", "16777216.0 TiB"]);
    }
}
