//! The guard as an nftables script.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ipnet::IpNet;
use warren_api::names::{GUARD_TABLE, INTERFACE_PREFIX};
use warren_api::status::{Enforcement, GuardCounters};
use warren_core::Guard;

/// A base chain of the guard.
pub struct Chain {
    pub name: &'static str,
    pub hook: &'static str,
    pub priority: i32,
    pub rules: Vec<String>,
}

/// The named counters, in the order of [`counter_values`].
pub const COUNTERS: [&str; 4] = ["out_pod", "out_node", "in_pod", "in_node"];

/// The values of [`COUNTERS`].
pub fn counter_values(counters: &GuardCounters) -> [u64; 4] {
    let GuardCounters { out_pod, out_node, in_pod, in_node } = *counters;
    [out_pod, out_node, in_pod, in_node]
}

/// The chains and their rules.
///
/// `in` stands at raw priority (-300), ahead of connection tracking and NAT: what did not come through a
/// tunnel has the addresses it had on the wire. `out` stands behind source NAT (100): what a packet carries
/// there is what would be on the wire. `mss` keeps TCP within the tunnel's MTU (RFC 4459, section 3.2).
///
/// Interfaces are trusted by their prefix: only this node's root can make one of that name.
pub fn chains(enforcement: Enforcement) -> [Chain; 3] {
    let verdict = match enforcement {
        Enforcement::Strict => " drop",
        Enforcement::Permissive => "",
    };
    let mut inbound = vec![format!("iifname \"{INTERFACE_PREFIX}*\" accept")];
    let mut outbound = vec![format!("oifname \"{INTERFACE_PREFIX}*\" accept")];
    for (ip, n) in [("ip", 4), ("ip6", 6)] {
        inbound.push(format!("{ip} saddr @remote_pods{n} counter name in_pod{verdict}"));
        inbound.push(format!(
            "{ip} saddr @remote_nodes{n} {ip} daddr @local_pods{n} counter name in_node{verdict}"
        ));
        outbound.push(format!("{ip} daddr @remote_pods{n} counter name out_pod{verdict}"));
        outbound.push(format!(
            "{ip} saddr @local_pods{n} {ip} daddr @remote_nodes{n} counter name out_node{verdict}"
        ));
    }
    let mss = vec![format!(
        "oifname \"{INTERFACE_PREFIX}*\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    )];
    [
        Chain { name: "in", hook: "prerouting", priority: -300, rules: inbound },
        Chain { name: "out", hook: "postrouting", priority: 300, rules: outbound },
        Chain { name: "mss", hook: "forward", priority: -150, rules: mss },
    ]
}

/// The comment of rule `index`: a fingerprint of all rules of that enforcement, so that a rule that is
/// missing, foreign, moved or of another version is noticed when it is read back.
pub fn comment(enforcement: Enforcement, chain: &str, index: usize) -> String {
    let mut hasher = DefaultHasher::new();
    for chain in chains(enforcement) {
        (chain.name, chain.hook, chain.priority, chain.rules).hash(&mut hasher);
    }
    format!("warren {:016x} {chain} {index}", hasher.finish())
}

/// The sets and what is in them: networks of all three kinds, told apart by address family.
pub fn sets(guard: &Guard) -> [(String, Vec<IpNet>); 6] {
    let of = |nets: &BTreeSet<IpNet>, v4: bool| {
        nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4).copied().collect()
    };
    let Guard { enforcement: _, remote_pods, local_pods, remote_nodes } = guard;
    [
        ("remote_pods4".into(), of(remote_pods, true)),
        ("remote_pods6".into(), of(remote_pods, false)),
        ("local_pods4".into(), of(local_pods, true)),
        ("local_pods6".into(), of(local_pods, false)),
        ("remote_nodes4".into(), of(remote_nodes, true)),
        ("remote_nodes6".into(), of(remote_nodes, false)),
    ]
}

/// Puts the whole guard in place of whatever stands there. One transaction: there is no moment without it.
pub fn replace(guard: &Guard, counters: GuardCounters) -> String {
    let mut script = format!("{}add table inet {GUARD_TABLE}\ntable inet {GUARD_TABLE} {{\n", remove());
    for (counter, packets) in COUNTERS.iter().zip(counter_values(&counters)) {
        let _ = writeln!(script, "  counter {counter} {{ packets {packets} bytes 0; }}");
    }
    for (name, nets) in sets(guard) {
        let kind = if name.ends_with('4') { "ipv4_addr" } else { "ipv6_addr" };
        let elements = if nets.is_empty() { String::new() } else { format!("elements = {}; ", list(&nets)) };
        let _ = writeln!(script, "  set {name} {{ type {kind}; flags interval; {elements}}}");
    }
    for chain in chains(guard.enforcement) {
        let Chain { name, hook, priority, rules } = chain;
        let _ = writeln!(script, "  chain {name} {{");
        let _ = writeln!(script, "    type filter hook {hook} priority {priority}; policy accept;");
        for (index, rule) in rules.iter().enumerate() {
            let _ = writeln!(script, "    {rule} comment \"{}\"", comment(guard.enforcement, name, index));
        }
        let _ = writeln!(script, "  }}");
    }
    script + "}\n"
}

/// Changes the sets. Removals first: within a transaction nobody sees the state in between, and a network
/// that grows would overlap with its former self.
pub fn update(add: &Guard, remove: &Guard) -> String {
    let mut script = String::new();
    for (verb, guard) in [("delete", remove), ("add", add)] {
        for (name, nets) in sets(guard).iter().filter(|(_, nets)| !nets.is_empty()) {
            let _ = writeln!(script, "{verb} element inet {GUARD_TABLE} {name} {}", list(nets));
        }
    }
    script
}

/// Takes the guard away, also where there is none.
pub fn remove() -> String {
    format!("add table inet {GUARD_TABLE}\ndelete table inet {GUARD_TABLE}\n")
}

fn list(nets: &[IpNet]) -> String {
    let nets: Vec<String> = nets.iter().map(IpNet::to_string).collect();
    format!("{{ {} }}", nets.join(", "))
}
