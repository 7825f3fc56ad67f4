//! Rules as netlink messages, and back. A rule without Warren's protocol is somebody else's and comes back as nothing.

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use warren_api::names;
use warren_core::{Family, Rule};

const PROTOCOL: RouteProtocol = RouteProtocol::Other(names::ROUTE_PROTOCOL);

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
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
