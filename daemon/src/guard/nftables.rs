//! nftables over netlink: lists of what stands in a table, and changes of its sets.
//!
//! The rules are written by `nft`, once. What is read at each look, and changed with each node that comes or goes,
//! goes to the kernel directly: for the sets of 5,000 nodes `nft` needs a tenth of a second and more, even to add
//! one network.
//!
//! A set of networks is kept as the bounds of intervals: each has a first address and, flagged as the end, the
//! address after the last, which is missing where there is none. Numbers: `linux/netfilter/nf_tables.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;
use warren_api::names::GUARD_TABLE;

use crate::marks::Rule;
use crate::netlink::{self, Request, attributes, u32_at};
use crate::rewrites::BaseChain;

/// A kind of message of nftables, as netlink numbers it.
const fn message(kind: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

const GET_TABLE: u16 = message(libc::NFT_MSG_GETTABLE);
const GET_CHAIN: u16 = message(libc::NFT_MSG_GETCHAIN);
const GET_RULE: u16 = message(libc::NFT_MSG_GETRULE);
const GET_SET: u16 = message(libc::NFT_MSG_GETSET);
const GET_OBJECT: u16 = message(libc::NFT_MSG_GETOBJ);
const GET_ELEMENTS: u16 = message(libc::NFT_MSG_GETSETELEM);
const NEW_ELEMENTS: u16 = message(libc::NFT_MSG_NEWSETELEM);
const DELETE_ELEMENTS: u16 = message(libc::NFT_MSG_DELSETELEM);

/// The attribute that names the table, in the messages of all that a table holds.
const TABLE: u16 = 1;
/// The attribute that names a table itself, a set and an object.
const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const OBJECT_NAME: u16 = 2;
const OBJECT_DATA: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const DATA_VALUE: u16 = 1;

/// What changes of a table while it stands: how many use it, its handle.
const TABLE_CHANGING: &[u16] = &[3, 4];
/// Of a chain: handle, users, counters.
const CHAIN_CHANGING: &[u16] = &[2, 6, 8];
/// Of a rule: its own handle and that of the rule before it.
const RULE_CHANGING: &[u16] = &[2, 6];
/// Of a set: handle, number of elements.
const SET_CHANGING: &[u16] = &[16, 20];
/// Of an object: value, users, handle.
const OBJECT_CHANGING: &[u16] = &[OBJECT_DATA, 5, 6];

/// `struct nfgenmsg`: family, version, and a number that means the subsystem at the ends of a batch.
const fn header(family: i32, number: i32) -> [u8; 4] {
    let [high, low] = (number as u16).to_be_bytes();
    [family as u8, 0, high, low]
}

const INET: [u8; 4] = header(libc::NFPROTO_INET, 0);

/// How many elements go into one message, whose list must stay below 64 KiB; an element has at most 40 bytes.
const CHUNK: usize = 1000;

/// Something that stands in the table.
pub struct Part {
    /// Its name; rules have none.
    pub name: String,
    /// How it reads, without what changes while it stands.
    pub skeleton: Vec<u8>,
    /// The value of a counter, in packets.
    pub packets: Option<u64>,
}

/// A connection to the nftables of the current network namespace.
pub struct Socket(netlink::Socket);

impl Socket {
    /// Connects.
    pub fn open() -> io::Result<Self> {
        Ok(Self(netlink::Socket::open(NETLINK_NETFILTER)?))
    }

    /// The guard's table itself, if there is one.
    pub fn table(&mut self) -> io::Result<Option<Part>> {
        let mut request = Request::new(GET_TABLE, 0, &INET);
        request.put_name(TABLE_NAME, GUARD_TABLE);
        let found = self.0.get(&mut request, |found: &mut Option<Part>, message| {
            found.get_or_insert_with(|| part(message, TABLE_NAME, TABLE_CHANGING));
        });
        match found {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            found => found,
        }
    }

    /// All chains of the table.
    pub fn chains(&mut self) -> io::Result<Vec<Part>> {
        self.parts(GET_CHAIN, CHAIN_NAME, CHAIN_CHANGING)
    }

    /// All rules of the table, in their order.
    pub fn rules(&mut self) -> io::Result<Vec<Part>> {
        self.parts(GET_RULE, 0, RULE_CHANGING)
    }

    /// All rules of all tables of all families.
    pub fn all_rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut request = Request::new(GET_RULE, 0, &header(libc::NFPROTO_UNSPEC, 0));
        self.0.dump(&mut request, |rules: &mut Vec<Rule>, message| {
            let name = |kind| find(body(message), kind).map(text).unwrap_or_default().to_owned();
            let expressions = find(body(message), RULE_EXPRESSIONS).unwrap_or_default().to_vec();
            let family = message.first().copied().unwrap_or_default();
            rules.push(Rule { family, table: name(TABLE), chain: name(RULE_CHAIN), expressions });
        })
    }

    /// All chains of all tables that the kernel calls.
    pub fn base_chains(&mut self) -> io::Result<Vec<BaseChain>> {
        let mut request = Request::new(GET_CHAIN, 0, &header(libc::NFPROTO_UNSPEC, 0));
        self.0.dump(&mut request, |chains: &mut Vec<BaseChain>, message| {
            let name = |kind| find(body(message), kind).map(text).unwrap_or_default().to_owned();
            let Some(hook) = find(body(message), CHAIN_HOOK) else { return };
            // In the order of the wire.
            let number = |kind| find(hook, kind).and_then(|value| u32_at(value, 0)).map(u32::from_be);
            if let (Some(hook), Some(priority)) = (number(HOOK_NUMBER), number(HOOK_PRIORITY)) {
                let family = message.first().copied().unwrap_or_default();
                let (table, name, priority) = (name(TABLE), name(CHAIN_NAME), priority as i32);
                chains.push(BaseChain { family, table, name, hook, priority });
            }
        })
    }

    /// All sets of the table, those without a name included, which stand in rules.
    pub fn sets(&mut self) -> io::Result<Vec<Part>> {
        self.parts(GET_SET, SET_NAME, SET_CHANGING)
    }

    /// All counters of the table, and other things of that sort.
    pub fn objects(&mut self) -> io::Result<Vec<Part>> {
        self.parts(GET_OBJECT, OBJECT_NAME, OBJECT_CHANGING)
    }

    fn parts(&mut self, kind: u16, name: u16, changing: &[u16]) -> io::Result<Vec<Part>> {
        let mut request = Request::new(kind, 0, &INET);
        request.put_name(TABLE, GUARD_TABLE);
        self.0.dump(&mut request, |parts: &mut Vec<Part>, message| {
            // Not every kernel filters every list by table.
            if find(body(message), TABLE).is_some_and(|table| text(table) == GUARD_TABLE) {
                parts.push(part(message, name, changing));
            }
        })
    }

    /// The networks of a set. Ranges that are no network are left out: they are never written; one that somebody
    /// else put there stays, and blocks at most too much.
    pub fn networks(&mut self, set: &str) -> io::Result<Vec<IpNet>> {
        let mut bounds =
            self.elements(set, |bounds: &mut Vec<Bound>, element| bounds.extend(bound(element)))?;
        bounds.sort_unstable();
        Ok(networks(&bounds))
    }

    /// A set's elements as they come.
    pub fn raw_elements(&mut self, set: &str) -> io::Result<Vec<u8>> {
        self.elements(set, |bytes: &mut Vec<u8>, element| bytes.extend_from_slice(element))
    }

    fn elements<C: Default>(&mut self, set: &str, mut each: impl FnMut(&mut C, &[u8])) -> io::Result<C> {
        let mut request = Request::new(GET_ELEMENTS, 0, &INET);
        request.put_name(TABLE, GUARD_TABLE);
        request.put_name(ELEMENTS_SET, set);
        self.0.dump(&mut request, |collection, message| {
            let list = find(body(message), ELEMENTS_LIST).unwrap_or_default();
            attributes(list).for_each(|(_, element)| each(collection, element));
        })
    }

    /// Takes networks out of sets and puts others in, as one transaction. Removals come first: a network that grows
    /// would overlap with its former self.
    pub fn update(&mut self, remove: &Changes, add: &Changes) -> io::Result<()> {
        let ends = header(libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES);
        let mut batch = vec![Request::new(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &ends)];
        for (kind, flags, changes) in [(DELETE_ELEMENTS, 0, remove), (NEW_ELEMENTS, libc::NLM_F_CREATE, add)]
        {
            for (set, nets) in changes {
                let bounds: Vec<Bound> = nets.iter().flat_map(bounds).collect();
                batch.extend(bounds.chunks(CHUNK).map(|chunk| elements(kind, flags, set, chunk)));
            }
        }
        let last = batch.len() - 1;
        batch.push(Request::new(libc::NFNL_MSG_BATCH_END as u16, 0, &ends));
        match self.0.transact(&mut batch, last)?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// Networks by the sets they belong to.
pub type Changes = [(&'static str, Vec<IpNet>)];

fn body(message: &[u8]) -> &[u8] {
    message.get(INET.len()..).unwrap_or_default()
}

/// The attribute of a kind.
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A name.
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default().trim_end_matches('\0')
}

fn part(message: &[u8], name: u16, changing: &[u16]) -> Part {
    let mut part = Part { name: String::new(), skeleton: Vec::new(), packets: None };
    for (kind, value) in attributes(body(message)) {
        if kind == name {
            part.name = text(value).to_owned();
        }
        if kind == OBJECT_DATA && changing == OBJECT_CHANGING {
            let packets = find(value, COUNTER_PACKETS).and_then(|value| value.try_into().ok());
            part.packets = packets.map(u64::from_be_bytes);
        }
        if !changing.contains(&kind) {
            part.skeleton.extend_from_slice(&kind.to_ne_bytes());
            part.skeleton.extend_from_slice(&(value.len() as u32).to_ne_bytes());
            part.skeleton.extend_from_slice(value);
        }
    }
    part
}

/// Where an interval ends, before or begins: an address with its family. In this order intervals follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bound {
    address: IpAddr,
    begins: bool,
}

/// The bounds of a network; the last address of all has none behind it.
fn bounds(net: &IpNet) -> impl Iterator<Item = Bound> + use<> {
    let first = Bound { address: net.network(), begins: true };
    let after = match net.broadcast() {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    };
    std::iter::once(first).chain(after.map(|address| Bound { address, begins: false }))
}

/// The networks between sorted bounds.
fn networks(bounds: &[Bound]) -> Vec<IpNet> {
    let mut nets = Vec::with_capacity(bounds.len() / 2 + 1);
    for (index, bound) in bounds.iter().enumerate().filter(|(_, bound)| bound.begins) {
        // An interval ends where it says, or where the next one begins.
        nets.extend(network(bound.address, bounds.get(index + 1).map(|next| next.address)));
    }
    nets
}

/// The network from an address to the one before `after`, if that is one.
fn network(first: IpAddr, after: Option<IpAddr>) -> Option<IpNet> {
    match (first, after) {
        (IpAddr::V4(first), after) => {
            let after = match after {
                Some(IpAddr::V4(after)) => after.to_bits(),
                _ => 0,
            };
            let prefix = 32 - power(after.wrapping_sub(first.to_bits()).into(), 32)?;
            Some(Ipv4Net::new(first, prefix).ok()?.into()).filter(|net: &IpNet| net.network() == first)
        }
        (IpAddr::V6(first), after) => {
            let after = match after {
                Some(IpAddr::V6(after)) => after.to_bits(),
                _ => 0,
            };
            let prefix = 128 - power(after.wrapping_sub(first.to_bits()), 128)?;
            Some(Ipv6Net::new(first, prefix).ok()?.into()).filter(|net: &IpNet| net.network() == first)
        }
    }
}

/// Of which power of two a size is, where 0 stands for all addresses there are.
fn power(size: u128, all: u8) -> Option<u8> {
    match size {
        0 => Some(all),
        size if size.is_power_of_two() => Some(size.trailing_zeros() as u8),
        _ => None,
    }
}

/// A bound from an element, if it is an address.
fn bound(element: &[u8]) -> Option<Bound> {
    let value = find(find(element, ELEMENT_KEY)?, DATA_VALUE)?;
    let address = match value.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
    };
    let flags = find(element, ELEMENT_FLAGS).and_then(|flags| flags.try_into().ok());
    let flags = flags.map(u32::from_be_bytes).unwrap_or_default();
    Some(Bound { address, begins: flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 == 0 })
}

/// A message that changes some elements of a set.
fn elements(kind: u16, flags: i32, set: &str, bounds: &[Bound]) -> Request {
    let mut request = Request::new(kind, flags, &INET);
    request.put_name(TABLE, GUARD_TABLE);
    request.put_name(ELEMENTS_SET, set);
    request.nest(ELEMENTS_LIST, |list| {
        for bound in bounds {
            list.nest(LIST_ELEMENT, |element| {
                element.nest(ELEMENT_KEY, |key| match bound.address {
                    IpAddr::V4(address) => key.put(DATA_VALUE, &address.octets()),
                    IpAddr::V6(address) => key.put(DATA_VALUE, &address.octets()),
                });
                if !bound.begins {
                    let end = libc::NFT_SET_ELEM_INTERVAL_END as u32;
                    element.put(ELEMENT_FLAGS, &end.to_be_bytes());
                }
            });
        }
    });
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_are_what_lies_between_bounds() {
        for nets in [
            &["10.0.1.0/24", "10.0.2.0/24", "10.0.5.7/32", "240.0.0.0/4"][..],
            &["fd00:1::/64", "fd00:1:0:1::/64", "fd00:2::7/128", "ff00::/8"],
            &["0.0.0.0/1", "128.0.0.0/1"],
            &["::/0"],
        ] {
            let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
            let mut all: Vec<Bound> = nets.iter().flat_map(bounds).collect();
            // nft begins a set with the end of nothing.
            all.push(Bound { address: bounds(&nets[0]).next().unwrap().address, begins: false });
            all.sort_unstable();
            assert_eq!(networks(&all), nets);
            // Neighbours may share a bound.
            let starts: Vec<Bound> = all.iter().filter(|bound| bound.begins).copied().collect();
            if nets.len() == 2 {
                assert_eq!(networks(&starts), nets);
            }
        }
        let bound = |address: &str, begins| Bound { address: address.parse().unwrap(), begins };
        let range = [bound("10.0.0.1", true), bound("10.0.0.4", false)];
        assert_eq!(networks(&range), [], "a range that is no network");
        let range = [bound("10.0.0.2", true), bound("10.0.0.6", false)];
        assert_eq!(networks(&range), [], "a range that is no network, though as large as one");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            part(&bytes, CHAIN_NAME, OBJECT_CHANGING);
            bound(&bytes);
        }
    }
}
