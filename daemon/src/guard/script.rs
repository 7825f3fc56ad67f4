//! The guard as an nftables script.

use std::fmt::Write as _;

use ipnet::IpNet;
use warren_api::names::{GUARD_TABLE, INTERFACE_PREFIX};
use warren_api::status::{Enforcement, GuardCounters};
use warren_core::{Guard, Numbers, Priorities};

/// A base chain of the guard.
struct Chain {
    name: &'static str,
    hook: &'static str,
    priority: i32,
    rules: Vec<String>,
}

/// The named counters, in the order of [`counter_values`].
pub const COUNTERS: [&str; 4] = ["out_pod", "out_node", "in_pod", "in_node"];

/// The values of [`COUNTERS`].
fn counter_values(counters: &GuardCounters) -> [u64; 4] {
    let GuardCounters { out_pod, out_node, in_pod, in_node } = *counters;
    [out_pod, out_node, in_pod, in_node]
}

/// The words of one address family.
struct Words {
    ip: &'static str,
    n: u8,
    /// The ICMP types that quote the packet they are about.
    errors: &'static str,
    /// Where the quoted destination begins, in bits from the ICMP header: 8 bytes of ICMP, then that of the
    /// quoted IP header (RFC 792, RFC 4443 section 3).
    quoted_destination: u16,
    /// The packets by which neighbours on a link find each other, where these are packets (RFC 4861).
    neighbours: Option<&'static str>,
}

const FAMILIES: [Words; 2] = [
    Words {
        ip: "ip",
        n: 4,
        errors: "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
        quoted_destination: (8 + 16) * 8,
        neighbours: None,
    },
    Words {
        ip: "ip6",
        n: 6,
        errors: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        quoted_destination: (8 + 24) * 8,
        neighbours: Some("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"),
    },
];

/// The chains and their rules.
///
/// `in` stands at raw priority (-300), ahead of connection tracking and NAT: what did not come through a
/// tunnel has the addresses it had on the wire. A local pod's address is taken from the interface only that
/// leads to it. `out` stands behind source NAT (100): what a packet carries there is what would be on the
/// wire, and in what an ICMP error quotes, too. `mss` keeps TCP within the tunnel's MTU (RFC 4459, 3.2).
///
/// Interfaces are trusted by their prefix: only this node's root can make one of that name.
fn chains(guard: &Guard, numbers: &Numbers) -> [Chain; 3] {
    let Numbers {
        mark,
        chains: Priorities { inbound: before, outbound: behind, mss: forward },
        api_server_port: api,
        ..
    } = *numbers;
    let verdict = match guard.enforcement {
        Enforcement::Strict => " drop",
        Enforcement::Permissive => "",
    };
    let mut inbound = vec![format!("iifname \"{INTERFACE_PREFIX}*\" accept")];
    let mut outbound = vec![format!("oifname \"{INTERFACE_PREFIX}*\" accept")];
    for Words { ip, n, errors, quoted_destination, neighbours } in FAMILIES {
        let mut rule_in = |rule: String| inbound.push(rule + verdict);
        rule_in(format!("{ip} saddr @remote_pods{n} counter name in_pod"));
        rule_in(format!("{ip} saddr @local_pods{n} fib saddr . iif oif missing counter name in_pod"));
        rule_in(format!("{ip} saddr @remote_nodes{n} {ip} daddr @local_pods{n} counter name in_node"));
        let mut rule_out = |rule: String| outbound.push(rule + verdict);
        rule_out(format!("{ip} daddr @remote_pods{n} counter name out_pod"));
        rule_out(format!("{ip} saddr @local_pods{n} {ip} daddr @remote_nodes{n} counter name out_node"));
        for cidr in guard.local_pods.iter().filter(|cidr| is_of(cidr, n)) {
            let (bits, prefix) = prefix(cidr);
            rule_out(format!(
                "{ip} daddr @remote_nodes{n} {errors} @th,{quoted_destination},{bits} {prefix} \
                 counter name out_node"
            ));
        }
        outbound.extend(neighbours.map(|neighbours| format!("{ip} daddr @hosts{n} {neighbours} accept")));
        let exempt = ["tcp sport", "tcp dport"].map(|end| format!("{ip} daddr @hosts{n} {end} {api} accept"));
        outbound.extend(exempt);
        // The tunnels' own, and what asks for the path's MTU on their behalf. The mark alone is not enough: in many
        // containers a program may set any.
        outbound.push(format!("{ip} daddr @hosts{n} meta mark & {mark:#x} != 0 meta l4proto udp accept"));
        outbound.push(format!("{ip} daddr @hosts{n} counter name out_node{verdict}"));
    }
    let mss = vec![format!(
        "oifname \"{INTERFACE_PREFIX}*\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    )];
    [
        Chain { name: "in", hook: "prerouting", priority: before, rules: inbound },
        Chain { name: "out", hook: "postrouting", priority: behind, rules: outbound },
        Chain { name: "mss", hook: "forward", priority: forward, rules: mss },
    ]
}

fn is_of(net: &IpNet, n: u8) -> bool {
    matches!(net, IpNet::V4(_)) == (n == 4)
}

/// The bits of a network's prefix, and their number, which is at least one: no pod CIDR is the whole world.
fn prefix(net: &IpNet) -> (u8, String) {
    let bits = net.prefix_len().max(1);
    let value = match net.network() {
        std::net::IpAddr::V4(address) => u128::from(u32::from(address) >> (32 - bits)),
        std::net::IpAddr::V6(address) => u128::from(address) >> (128 - bits),
    };
    (bits, format!("{value:#x}"))
}

/// The name of the chain that seals a guard: it tells which rules were written, and how they read back right
/// after (`readback`, a fingerprint). A rule that is missing, added, moved, replaced, or of another version
/// of Warren or nft breaks the seal.
pub fn seal(guard: &Guard, numbers: &Numbers, readback: u64) -> String {
    let mut written = format!("{:?}", guard.enforcement);
    for Chain { name, hook, priority, rules } in chains(guard, numbers) {
        let _ = write!(written, "{name} {hook} {priority} {rules:?}");
    }
    format!("seal_{:016x}_{readback:016x}", fingerprint(written.as_bytes()))
}

/// How a seal's name begins.
pub const SEAL: &str = "seal_";

/// FNV-1a, 64 bits: the same in every build, which the standard library's hashers do not promise. It finds
/// accidents, and does not withstand root, who needs no collision.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The names of the sets.
pub const SETS: [&str; 8] = [
    "remote_pods4",
    "remote_pods6",
    "local_pods4",
    "local_pods6",
    "remote_nodes4",
    "remote_nodes6",
    "hosts4",
    "hosts6",
];

/// The sets and what is in them: networks of all kinds, told apart by address family.
pub fn sets(guard: &Guard) -> [(&'static str, Vec<IpNet>); 8] {
    let Guard { enforcement: _, remote_pods, local_pods, remote_nodes, hosts } = guard;
    let mut kinds =
        [remote_pods, local_pods, remote_nodes, hosts].into_iter().flat_map(|nets| [(nets, 4), (nets, 6)]);
    SETS.map(|name| {
        let of = kinds.next().map(|(nets, n)| nets.iter().filter(|net| is_of(net, n)).copied().collect());
        (name, of.unwrap_or_default())
    })
}

/// Puts the whole guard in place of whatever stands there. One transaction: there is no moment without it.
pub fn replace(guard: &Guard, numbers: &Numbers, counters: GuardCounters) -> String {
    let mut script = format!("{}add table inet {GUARD_TABLE}\ntable inet {GUARD_TABLE} {{\n", remove());
    for (counter, packets) in COUNTERS.iter().zip(counter_values(&counters)) {
        let _ = writeln!(script, "  counter {counter} {{ packets {packets} bytes 0; }}");
    }
    for (name, nets) in sets(guard) {
        let kind = if name.ends_with('4') { "ipv4_addr" } else { "ipv6_addr" };
        let elements = if nets.is_empty() { String::new() } else { format!("elements = {}; ", list(&nets)) };
        let _ = writeln!(script, "  set {name} {{ type {kind}; flags interval; {elements}}}");
    }
    for Chain { name, hook, priority, rules } in chains(guard, numbers) {
        let _ = writeln!(script, "  chain {name} {{");
        let _ = writeln!(script, "    type filter hook {hook} priority {priority}; policy accept;");
        for rule in rules {
            let _ = writeln!(script, "    {rule}");
        }
        let _ = writeln!(script, "  }}");
    }
    script + "}\n"
}

/// Seals a guard that was just put in place.
pub fn put_seal(name: &str) -> String {
    format!("add chain inet {GUARD_TABLE} {name}\n")
}

/// Takes the guard away, also where there is none.
pub fn remove() -> String {
    format!("add table inet {GUARD_TABLE}\ndelete table inet {GUARD_TABLE}\n")
}

fn list(nets: &[IpNet]) -> String {
    let nets: Vec<String> = nets.iter().map(IpNet::to_string).collect();
    format!("{{ {} }}", nets.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn prefixes_are_their_leading_bits() {
        let prefix = |net: &str| prefix(&net.parse().unwrap());
        assert_eq!(prefix("10.244.1.0/24"), (24, "0xaf401".into()));
        assert_eq!(prefix("10.244.16.0/20"), (20, "0xaf41".into()));
        assert_eq!(prefix("fd00:1::/64"), (64, "0xfd00000100000000".into()));
    }

    #[test]
    fn the_seal_tells_guards_apart() {
        let guard = Guard { local_pods: ["10.244.1.0/24".parse().unwrap()].into(), ..Guard::default() };
        let permissive = Guard { enforcement: Enforcement::Permissive, ..guard.clone() };
        let other = Guard { local_pods: ["10.244.2.0/24".parse().unwrap()].into(), ..guard.clone() };
        let numbers = Numbers::default();
        let seal = |guard: &Guard, readback| seal(guard, &numbers, readback);
        let seals: BTreeSet<String> = [&guard, &permissive, &other].map(|guard| seal(guard, 7)).into();
        assert_eq!(seals.len(), 3);
        assert_ne!(seal(&guard, 7), seal(&guard, 8));
        assert_ne!(seal(&guard, 7), super::seal(&guard, &Numbers { mark: 0x100, ..numbers }, 7));
        let more = Guard { remote_pods: ["10.244.3.0/24".parse().unwrap()].into(), ..guard.clone() };
        assert_eq!(seal(&guard, 7), seal(&more, 7), "the sets change without breaking the seal");
    }
}
