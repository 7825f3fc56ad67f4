//! Routes and rules as netlink messages, and back.
//!
//! A route in Warren's tables that Warren could not have made comes back as one that no plan wants, and so is
//! removed. A rule without Warren's protocol is somebody else's and comes back as nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use warren_api::names;
use warren_core::{Family, Route, RouteKind, Rule};

const PROTOCOL: RouteProtocol = RouteProtocol::Other(names::ROUTE_PROTOCOL);

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// What asks for all routes of one table.
pub fn table_filter(family: Family, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// The message that describes a route; `interface` is the index of the tunnel's interface.
pub fn route_message(route: &Route, interface: Option<u32>) -> RouteMessage {
    let mut message = table_filter(Family::from(&route.destination), route.table);
    message.header.protocol = PROTOCOL;
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.attributes.push(RouteAttribute::Destination(route_address(route.destination.network())));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    match &route.kind {
        RouteKind::Tunnel { source, .. } => {
            message.header.kind = RouteType::Unicast;
            // What lies behind a tunnel is directly on its link.
            message.header.scope = match route.destination {
                IpNet::V4(_) => RouteScope::Link,
                IpNet::V6(_) => RouteScope::Universe,
            };
            message.attributes.extend(interface.map(RouteAttribute::Oif));
            message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(route_address(source))));
        }
        RouteKind::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            message.header.scope = RouteScope::Universe;
        }
        RouteKind::Foreign => {}
    }
    message
}

/// The message that removes a route, whoever made it: what may differ from Warren's own is left open.
pub fn removal_message(route: &Route, interface: Option<u32>) -> RouteMessage {
    let mut message = route_message(route, interface);
    message.header.protocol = RouteProtocol::Unspec;
    // "Any", when a route is removed (net/ipv4/fib_trie.c, fib_table_delete).
    message.header.scope = RouteScope::NoWhere;
    message
}

/// The route that a message describes.
pub fn route<'a>(message: &RouteMessage, name: &impl Fn(u32) -> Option<&'a str>) -> Option<Route> {
    let v4 = message.header.address_family == AddressFamily::Inet;
    let mut destination: IpAddr = if v4 { [0; 4].into() } else { [0; 16].into() };
    let (mut table, mut metric) = (u32::from(message.header.table), 0);
    let (mut interface, mut source, mut plain) = (None, None, true);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_address(address)?,
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::PrefSource(address) => source = ip_address(address),
            RouteAttribute::Oif(index) => interface = name(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                plain = false
            }
            RouteAttribute::Source(_) | RouteAttribute::Encap(_) | RouteAttribute::NhId(_) => plain = false,
            _ => {}
        }
    }
    let ours = plain && message.header.protocol == PROTOCOL;
    let kind = match (message.header.kind, interface) {
        (RouteType::Unreachable, _) if ours => RouteKind::Unreachable,
        (RouteType::Unicast, Some(interface)) if ours => {
            RouteKind::Tunnel { interface: interface.to_owned(), source }
        }
        _ => RouteKind::Foreign,
    };
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { table, destination, metric, kind })
}

/// The message that describes a rule.
pub fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
    if let Some(source) = rule.source {
        message.header.src_len = source.prefix_len();
        message.attributes.push(RuleAttribute::Source(source.network()));
    }
    message
}

/// The rule that a message describes, if it carries Warren's protocol. Others' rules are others' business,
/// even those that lead to Warren's tables.
pub fn rule(message: &RuleMessage) -> Option<Rule> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let (mut table, mut priority) = (u32::from(message.header.table), 0);
    let (mut source, mut ours) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Source(address) => source = IpNet::new(*address, message.header.src_len).ok(),
            RuleAttribute::Protocol(protocol) => ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    ours.then_some(Rule { family, priority, source, table })
}
