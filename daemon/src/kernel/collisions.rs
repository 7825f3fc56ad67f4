//! Who else has what is to be Warren's: routing tables, priorities of rules, and the mark in rules of routing. (In rules
//! of firewalls: `marks`; chains in whose sight the guard would be blind: `rewrites`.)

use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use warren_core::{Numbers, Route, RouteKind};

use super::rules;
use crate::marks::Question;

/// What stands in the way of these numbers, each with what to do about it.
pub fn find(numbers: &Numbers, rules: &[RuleMessage], routes: &[&Route]) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |what: String| {
        if !found.contains(&what) {
            found.push(what);
        }
    };
    for route in routes.iter().filter(|route| route.kind == RouteKind::Foreign) {
        let (table, destination) = (route.table, route.destination);
        say(format!(
            "the routing table {table} holds somebody else's route to {destination}: choose three free ones with --table"
        ));
    }
    for rule in rules.iter().filter(|rule| rules::rule(rule).is_none()) {
        let Foreign { priority, table, question } = Foreign::of(rule);
        if (numbers.rule..numbers.rule + 4).contains(&priority) {
            say(format!(
                "the priority {priority} is that of somebody else's routing rule: choose four free ones with --rule-priority"
            ));
        }
        if numbers.tables().contains(&table) {
            say(format!(
                "somebody else's routing rule (priority {priority}) leads to the table {table}: choose three free ones \
                 with --table"
            ));
        }
        if question.is_some_and(|question| question.concerns(numbers.mark)) {
            say(format!(
                "somebody else's routing rule (priority {priority}) asks for the mark {:#x}: choose another bit with --mark",
                numbers.mark
            ));
        }
    }
    found
}

/// What matters of a rule that is not Warren's.
struct Foreign {
    priority: u32,
    table: u32,
    question: Option<Question>,
}

impl Foreign {
    fn of(message: &RuleMessage) -> Self {
        let (mut priority, mut table) = (0, u32::from(message.header.table));
        let (mut mark, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(number) => priority = *number,
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = *value,
                _ => {}
            }
        }
        let inverted = message.header.flags.contains(RuleFlags::Invert);
        Self { priority, table, question: mark.map(|value| Question { value, mask, inverted }) }
    }
}
