//! Chains of others that rewrite addresses where the guard would not see it. No policy.
//!
//! The guard judges by the addresses on the wire. That is true of what it sees at prerouting as long as nobody rewrote
//! them before, and at postrouting as long as nobody does later. Others' chains at the same hooks, at the same
//! priorities even (iptables' table `raw` is at -300, like the guard's own chain), do no harm otherwise: one chain's
//! `accept` does not end the next, and what another drops is dropped. NAT does no harm either, whatever priority its
//! chain names: the kernel calls all of them where its own NAT is, at -100 and 100 (`nf_nat_register_fn`). What remains
//! are rules that set an address as bytes: `ip saddr set`. And a larger MSS is set by nobody after us, since the kernel
//! only ever lowers it (`nft_exthdr_tcp_set_eval`).
//!
//! Programs of eBPF, and the hooks of devices (`netdev`), stand outside of all priorities and are not looked at.

use std::collections::BTreeSet;
use std::io;

use nix::libc;
use warren_api::names::GUARD_TABLE;
use warren_core::Priorities;

use crate::guard::nftables::{Socket, find, text};
use crate::marks::Rule;
use crate::netlink::{attributes, u32_at};

/// A chain that the kernel calls.
#[derive(Debug, Clone)]
pub struct BaseChain {
    /// `NFPROTO_…`.
    pub family: u8,
    /// The name of its table.
    pub table: String,
    /// Its own.
    pub name: String,
    /// `NF_INET_…`, of the families of IP.
    pub hook: u32,
    /// Lower is called first.
    pub priority: i32,
}

/// Who rewrites addresses ahead of the guard's chain at prerouting, or behind the one at postrouting, each with what
/// to do about it.
pub fn find_others(ours: Priorities) -> io::Result<Vec<String>> {
    let mut socket = Socket::open()?;
    let rewriting =
        socket.all_rules()?.into_iter().filter(|rule| rule.table != GUARD_TABLE && rewrites(rule));
    // Wherever in its table the rule stands: a base chain of it may jump there.
    let tables: BTreeSet<(u8, String)> = rewriting.map(|rule| (rule.family, rule.table)).collect();
    let mut found = Vec::new();
    for chain in socket.base_chains()? {
        let BaseChain { family, table, name, hook, priority } = chain;
        if !tables.contains(&(family, table.clone())) {
            continue;
        }
        found.extend(hides(family, hook, priority, ours).map(|where_| {
            format!(
                "nftables' table {table} rewrites addresses, and its chain {name} stands {where_}: have it go, or choose \
                 other priorities with --nft-priorities"
            )
        }));
    }
    Ok(found)
}

/// Where a chain stands that could hide addresses from the guard.
fn hides(family: u8, hook: u32, priority: i32, ours: Priorities) -> Option<String> {
    let Priorities { inbound, outbound, mss: _ } = ours;
    let of_ip = [libc::NFPROTO_INET, libc::NFPROTO_IPV4, libc::NFPROTO_IPV6];
    if !of_ip.contains(&i32::from(family)) {
        return None;
    }
    // Of chains with one priority, which is called first depends on which came first.
    if hook == libc::NF_INET_PRE_ROUTING as u32 && priority <= inbound {
        return Some(format!("at prerouting {priority}, ahead of the guard ({inbound})"));
    }
    let behind = hook == libc::NF_INET_POST_ROUTING as u32 && priority >= outbound;
    behind.then(|| format!("at postrouting {priority}, behind the guard ({outbound})"))
}

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
/// The register that is written into the packet; missing where the packet is read.
const PAYLOAD_SOURCE: u16 = 5;
const NETWORK_HEADER: u32 = 1;

/// Whether a rule writes where addresses are.
fn rewrites(rule: &Rule) -> bool {
    attributes(&rule.expressions).filter(|(kind, _)| *kind == LIST_ELEMENT).any(|(_, expression)| {
        let Some(data) = find(expression, DATA) else { return false };
        // Numbers are in the order of the wire.
        let number = |kind| find(data, kind).and_then(|value| u32_at(value, 0)).map(u32::from_be);
        find(expression, NAME).map(text) == Some("payload")
            && find(data, PAYLOAD_SOURCE).is_some()
            && number(PAYLOAD_BASE) == Some(NETWORK_HEADER)
            && number(PAYLOAD_OFFSET)
                .zip(number(PAYLOAD_LENGTH))
                .is_none_or(|(offset, length)| touches_addresses(rule.family, offset, length))
    })
}

/// Whether bytes of an IP header are of an address: 12 to 20 of IPv4's, 8 to 40 of IPv6's. Where a table has both, what
/// only touches the bytes 8 to 12 is taken for IPv4's TTL and checksum: nobody writes a third of an address.
fn touches_addresses(family: u8, offset: u32, length: u32) -> bool {
    let (start, end) = match i32::from(family) {
        libc::NFPROTO_IPV4 => (12, 20),
        libc::NFPROTO_IPV6 => (8, 40),
        _ => (12, 40),
    };
    offset < end && offset.saturating_add(length) > start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_guard_would_not_see_hides_anything() {
        let ours = Priorities { inbound: -300, outbound: 300, mss: -150 };
        let hides =
            |family: i32, hook: i32, priority| hides(family as u8, hook as u32, priority, ours).is_some();
        let (inet, before, behind) =
            (libc::NFPROTO_INET, libc::NF_INET_PRE_ROUTING, libc::NF_INET_POST_ROUTING);
        for (hook, priority) in [(before, -300), (before, -400), (behind, 300), (behind, i32::MAX)] {
            assert!(hides(inet, hook, priority), "{hook} {priority}");
        }
        for (hook, priority) in [(before, -299), (before, 300), (behind, 299), (libc::NF_INET_FORWARD, 300)] {
            assert!(!hides(inet, hook, priority), "{hook} {priority}");
        }
        assert!(
            !hides(libc::NFPROTO_BRIDGE, before, -300),
            "hooks of bridges have other numbers and meanings"
        );
    }

    #[test]
    fn addresses_are_told_from_what_is_beside_them() {
        let (v4, v6, both) = (libc::NFPROTO_IPV4 as u8, libc::NFPROTO_IPV6 as u8, libc::NFPROTO_INET as u8);
        for (family, offset, length) in
            [(v4, 12, 4), (v4, 16, 4), (v6, 8, 16), (v6, 38, 2), (both, 12, 4), (both, 8, 16)]
        {
            assert!(touches_addresses(family, offset, length), "{family} {offset} {length}");
        }
        // TTL and checksum, hop limit, traffic class.
        for (family, offset, length) in
            [(v4, 8, 2), (v4, 10, 2), (v6, 6, 2), (v6, 0, 2), (both, 8, 2), (both, 0, 2)]
        {
            assert!(!touches_addresses(family, offset, length), "{family} {offset} {length}");
        }
    }
}
