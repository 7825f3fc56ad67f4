//! Rules as netlink messages, and back. A rule without Warren's protocol is somebody else's and comes back as nothing.

use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use nix::libc;
use warren_api::names;
use warren_core::{Family, Port, Rule};

use crate::netlink::Request;

const PROTOCOL: RouteProtocol = RouteProtocol::Other(names::ROUTE_PROTOCOL);

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// What adds a rule. One that stands already, because the kernel's word of it was lost, stands twice then, and the second
/// is removed at the next look.
pub fn addition(rule: &Rule) -> Request {
    Request::of(libc::RTM_NEWRULE, libc::NLM_F_CREATE, &message(rule))
}

/// What removes a rule, once.
pub fn removal(rule: &Rule) -> Request {
    Request::of(libc::RTM_DELRULE, 0, &message(rule))
}

fn message(rule: &Rule) -> RuleMessage {
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
    if let Some(destination) = rule.destination {
        message.header.dst_len = destination.prefix_len();
        message.attributes.push(RuleAttribute::Destination(destination.network()));
    }
    if let Some(port) = rule.port {
        message.attributes.push(RuleAttribute::IpProtocol(IpProtocol::Tcp));
        message.attributes.push(match port {
            Port::Source(port) => RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
            Port::Destination(port) => {
                RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port })
            }
        });
    }
    if let Some(mark) = rule.unmarked {
        message.header.flags |= RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(mark));
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
    let mut rule = Rule::new(family, 0, u32::from(message.header.table));
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(id) => rule.table = *id,
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Source(address) => {
                rule.source = IpNet::new(*address, message.header.src_len).ok();
            }
            RuleAttribute::Destination(address) => {
                rule.destination = IpNet::new(*address, message.header.dst_len).ok();
            }
            RuleAttribute::SourcePortRange(range) => rule.port = Some(Port::Source(range.start)),
            RuleAttribute::DestinationPortRange(range) => rule.port = Some(Port::Destination(range.start)),
            RuleAttribute::FwMark(mark) => rule.unmarked = Some(*mark),
            RuleAttribute::Protocol(protocol) => ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    ours.then_some(rule)
}
