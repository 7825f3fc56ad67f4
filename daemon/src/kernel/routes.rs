//! Routes as netlink messages, and back (`linux/rtnetlink.h`, rtnetlink(7)).
//!
//! A route in Warren's tables that Warren could not have made comes back as one that no plan wants, and so is
//! removed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use nix::libc;
use warren_api::names;
use warren_core::{Family, Route, RouteKind};

use crate::netlink::{Request, Socket, attributes, patiently, u32_at};

/// `struct rtmsg`: family, prefix length of the destination and of the source, TOS, table, protocol, scope, type,
/// and 32 bits of flags.
const RTMSG: usize = 12;

/// The number of a nexthop object, which Warren does not use.
const RTA_NH_ID: u16 = 30;

/// The metric of a route that is its MTU (`linux/rtnetlink.h`).
const RTAX_MTU: u16 = 2;

/// `struct rtnexthop`: its length with its attributes, flags, weight, and the number of the interface.
const RTNEXTHOP: usize = 8;

/// "It is on this link, whatever the addresses say" (`linux/rtnetlink.h`).
const RTNH_F_ONLINK: u8 = 4;

/// IPv6 spreads flows only over ways with a gateway (`rt6_qualify_for_ecmp`, include/net/ip6_fib.h). A tunnel has no
/// neighbours and looks at the packet's destination alone, so that this one, which nobody has, does no harm.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x5743);

/// Interfaces by their numbers, each as the list that routes over it alone share.
pub type Interfaces = HashMap<u32, Arc<[Arc<str>]>>;

fn address_family(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// All routes of one table.
pub fn list(
    socket: &mut Socket,
    family: Family,
    table: u32,
    interfaces: &Interfaces,
) -> io::Result<Vec<Route>> {
    let mut header = [0; RTMSG];
    header[0] = address_family(family);
    let mut request = Request::new(libc::RTM_GETROUTE, 0, &header);
    request.put(libc::RTA_TABLE, &table.to_ne_bytes());
    let each = |routes: &mut Vec<Route>, message: &[u8]| {
        routes.extend(parse(message, interfaces).filter(|route| route.table == table));
    };
    match patiently(|| socket.dump(&mut request, each)) {
        // The answer when the table has never held a route (net/ipv4/fib_frontend.c).
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        result => result,
    }
}

/// What adds a route in place of one with the same key; `interfaces` are the numbers of the tunnel's interfaces.
pub fn addition(route: &Route, interfaces: &[u32]) -> Request {
    let scope = match (&route.kind, Family::from(&route.destination)) {
        // What lies behind a tunnel is directly on its link.
        (RouteKind::Tunnel { .. }, Family::V4) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    request(libc::RTM_NEWROUTE, flags, route, interfaces, names::ROUTE_PROTOCOL, scope)
}

/// What removes a route, whoever made it: what may differ from Warren's own is left open.
pub fn removal(route: &Route, interfaces: &[u32]) -> Request {
    // "Any", when a route is removed (net/ipv4/fib_trie.c, fib_table_delete).
    let scope = libc::RT_SCOPE_NOWHERE;
    request(libc::RTM_DELROUTE, 0, route, interfaces, libc::RTPROT_UNSPEC, scope)
}

fn request(kind: u16, flags: i32, route: &Route, interfaces: &[u32], protocol: u8, scope: u8) -> Request {
    let Route { table, destination, metric, kind: what } = route;
    let family = address_family(Family::from(destination));
    let type_ = match what {
        RouteKind::Tunnel { .. } => libc::RTN_UNICAST,
        RouteKind::Unreachable => libc::RTN_UNREACHABLE,
        RouteKind::Foreign => libc::RTN_UNSPEC,
    };
    let [f0, f1, f2, f3] = [0; 4];
    let header = [family, destination.prefix_len(), 0, 0, 0, protocol, scope, type_, f0, f1, f2, f3];
    let mut request = Request::new(kind, flags, &header);
    request.put(libc::RTA_TABLE, &table.to_ne_bytes());
    put_address(&mut request, libc::RTA_DST, destination.network());
    request.put(libc::RTA_PRIORITY, &metric.to_ne_bytes());
    if let RouteKind::Tunnel { source, mtu, .. } = what {
        match interfaces {
            [one] => request.put(libc::RTA_OIF, &one.to_ne_bytes()),
            several => put_nexthops(&mut request, several, destination),
        }
        if let Some(source) = source {
            put_address(&mut request, libc::RTA_PREFSRC, *source);
        }
        if let Some(mtu) = mtu {
            request.nest(libc::RTA_METRICS, |metrics| metrics.put(RTAX_MTU, &mtu.to_ne_bytes()));
        }
    }
    request
}

/// Several interfaces over which the kernel spreads flows.
fn put_nexthops(request: &mut Request, interfaces: &[u32], destination: &IpNet) {
    let mut nexthops = Vec::new();
    for interface in interfaces {
        let gateway = matches!(destination, IpNet::V6(_)).then(|| GATEWAY.octets());
        let (length, flags) = match gateway {
            Some(gateway) => (RTNEXTHOP + 4 + gateway.len(), RTNH_F_ONLINK),
            None => (RTNEXTHOP, 0),
        };
        nexthops.extend_from_slice(&(length as u16).to_ne_bytes());
        nexthops.extend_from_slice(&[flags, 0]);
        nexthops.extend_from_slice(&interface.to_ne_bytes());
        if let Some(gateway) = gateway {
            nexthops.extend_from_slice(&(4 + gateway.len() as u16).to_ne_bytes());
            nexthops.extend_from_slice(&libc::RTA_GATEWAY.to_ne_bytes());
            nexthops.extend_from_slice(&gateway);
        }
    }
    request.put(libc::RTA_MULTIPATH, &nexthops);
}

/// The interfaces of a route over several, if Warren could have made it.
fn nexthops(mut bytes: &[u8], interfaces: &Interfaces) -> Option<Vec<Arc<str>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let nexthop = bytes.get(RTNEXTHOP.min(length)..length)?;
        found.extend_from_slice(interfaces.get(&u32_at(bytes, 4)?)?);
        let theirs = attributes(nexthop).find(|(kind, value)| match *kind {
            libc::RTA_GATEWAY => *value != GATEWAY.octets(),
            libc::RTA_VIA | libc::RTA_ENCAP => true,
            _ => false,
        });
        if theirs.is_some() {
            return None;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

fn put_address(request: &mut Request, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => request.put(kind, &address.octets()),
        IpAddr::V6(address) => request.put(kind, &address.octets()),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The route that a message describes.
fn parse(message: &[u8], interfaces: &Interfaces) -> Option<Route> {
    let header = message.get(..RTMSG)?;
    let [family, length, _, _, table, protocol, _, type_] = *header.first_chunk()?;
    let any = if i32::from(family) == libc::AF_INET { [0; 4].into() } else { [0; 16].into() };
    let mut route = Route {
        table: table.into(),
        destination: IpNet::new(any, length).ok()?,
        metric: 0,
        kind: RouteKind::Foreign,
    };
    let (mut interface, mut several, mut source, mut mtu, mut plain) = (None, None, None, None, true);
    for (kind, value) in attributes(&message[RTMSG..]) {
        match kind {
            libc::RTA_DST => route.destination = IpNet::new(address(value)?, length).ok()?,
            libc::RTA_TABLE => route.table = u32_at(value, 0)?,
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            libc::RTA_PREFSRC => source = address(value),
            libc::RTA_OIF => interface = interfaces.get(&u32_at(value, 0)?),
            libc::RTA_MULTIPATH => several = Some(nexthops(value, interfaces)),
            libc::RTA_METRICS => {
                mtu =
                    attributes(value).find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, mtu)| u32_at(mtu, 0));
            }
            libc::RTA_GATEWAY | libc::RTA_VIA => plain = false,
            libc::RTA_SRC | libc::RTA_ENCAP | RTA_NH_ID => plain = false,
            _ => {}
        }
    }
    if plain && protocol == names::ROUTE_PROTOCOL {
        let interfaces = match several {
            Some(several) => several.map(Arc::from),
            None => interface.cloned(),
        };
        route.kind = match (type_, interfaces) {
            (libc::RTN_UNREACHABLE, _) => RouteKind::Unreachable,
            (libc::RTN_UNICAST, Some(interfaces)) => RouteKind::Tunnel { interfaces, source, mtu },
            _ => RouteKind::Foreign,
        };
    }
    Some(route)
}
