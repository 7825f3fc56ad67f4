//! Packet marks that others use: what firewalls on this node set and ask for. No policy.
//!
//! Rules of nftables, and those of `iptables-nft`, which the kernel keeps as nftables' with the structures of xtables
//! in them, are read over netlink; those of `iptables-legacy` from what its own program tells, where there are any.
//! Marks that come out of maps, connection marks and programs are not seen. Numbers: `linux/netfilter/nf_tables.h`,
//! `xt_mark.h`.

use std::io;
use std::process::Stdio;

use tokio::process::Command;
use warren_api::names::GUARD_TABLE;

use crate::guard::nftables::{Socket, find, text};
use crate::netlink::{attributes, u32_at};

/// What a rule asks of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What its bits have to be.
    pub value: u32,
    /// Which of them.
    pub mask: u32,
    /// Whether it is the packets with another mark that are meant.
    pub inverted: bool,
}

impl Question {
    /// Whether a bit makes a difference: somebody sets it, or packets are meant that have it and otherwise would not
    /// be.
    pub fn concerns(&self, bit: u32) -> bool {
        let Self { value, mask, .. } = *self;
        let meant = |mark: u32| ((mark ^ value) & mask == 0) != self.inverted;
        value & mask & bit != 0 || mask == bit || meant(bit) && !meant(0)
    }
}

/// Whose rules set the bit or ask for it, each with what to do about it.
pub async fn find_others(bit: u32) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut say = |whose: String| {
        let what = format!("{whose} uses the mark {bit:#x}: choose another bit with --mark");
        if !found.contains(&what) {
            found.push(what);
        }
    };
    for rule in Socket::open()?.all_rules()? {
        if rule.table != GUARD_TABLE && concerns(&rule.expressions, bit) {
            say(format!("a rule in nftables' table {}, chain {}", rule.table, rule.chain));
        }
    }
    for (tables, program) in
        [("ip_tables_names", "iptables-legacy-save"), ("ip6_tables_names", "ip6tables-legacy-save")]
    {
        // Without tables, the program would make some.
        let tables = std::fs::read_to_string(format!("/proc/net/{tables}")).unwrap_or_default();
        if tables.is_empty() {
            continue;
        }
        match Command::new(program).stdin(Stdio::null()).kill_on_drop(true).output().await {
            Ok(output) if output.status.success() => {
                let rules = String::from_utf8_lossy(&output.stdout);
                for rule in rules.lines().filter(|rule| concerns_legacy(rule, bit)) {
                    say(format!("iptables-legacy's rule {rule:?}"));
                }
            }
            _ => tracing::warn!("{program} cannot be run: what marks its rules use is not known"),
        }
    }
    Ok(found)
}

/// A rule of nftables.
pub struct Rule {
    /// That of its table: `NFPROTO_…`.
    pub family: u8,
    /// The name of its table.
    pub table: String,
    /// The name of its chain.
    pub chain: String,
    /// Its expressions, as attributes.
    pub expressions: Vec<u8>,
}

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;

/// `NFT_META_MARK`, in the order of the wire.
const META_MARK: [u8; 4] = 3u32.to_be_bytes();

/// Follows the mark through the registers of a rule.
fn concerns(expressions: &[u8], bit: u32) -> bool {
    // The register that holds the mark, and which of its bits are left; the last that was put into any.
    let (mut loaded, mut mask, mut written) = (None, u32::MAX, 0);
    for (_, expression) in attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEMENT) {
        let Some(data) = find(expression, DATA) else { continue };
        let value = |kind: u16| u32_at(find(find(data, kind)?, 1)?, 0);
        let concerned = match find(expression, NAME).map(text) {
            Some("meta") if find(data, 2) == Some(&META_MARK[..]) => match (find(data, 1), find(data, 3)) {
                (_, Some(_)) => written & bit != 0,
                (register, None) => {
                    (loaded, mask, written) = (register, u32::MAX, 0);
                    false
                }
            },
            Some("bitwise") => {
                if find(data, 1) == loaded {
                    mask &= value(4).unwrap_or(u32::MAX);
                    loaded = find(data, 2);
                }
                written = value(5).unwrap_or_default();
                false
            }
            Some("immediate") => {
                written = value(2).unwrap_or_default();
                false
            }
            Some("cmp") if loaded.is_some() && find(data, 1) == loaded => {
                // `NFT_CMP_EQ` is 0; of all others, only "not equal" makes sense of bits.
                let inverted = find(data, 2) != Some(&[0; 4][..]);
                value(3).is_some_and(|value| Question { value, mask, inverted }.concerns(bit))
            }
            Some("match") if find(data, 1).map(text) == Some("mark") => {
                let info = find(data, 3).unwrap_or_default();
                let (value, mask) = (u32_at(info, 0), u32_at(info, 4));
                let inverted = info.get(8).is_some_and(|byte| *byte != 0);
                let question = value.zip(mask).map(|(value, mask)| Question { value, mask, inverted });
                question.is_some_and(|question| question.concerns(bit))
            }
            Some("target") if find(data, 1).map(text) == Some("MARK") => {
                let info = find(data, 3).unwrap_or_default();
                u32_at(info, 0).is_some_and(|value| value & bit != 0)
            }
            _ => false,
        };
        if concerned {
            return true;
        }
    }
    false
}

/// The same of a line of `iptables-save`.
fn concerns_legacy(rule: &str, bit: u32) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    words.iter().enumerate().any(|(at, word)| {
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        let Some(operand) = words.get(at + 1) else { return false };
        let (value, mask) = operand.split_once('/').unwrap_or((operand, "0xffffffff"));
        let (Some(value), Some(mask)) = (number(value), number(mask)) else { return false };
        match *word {
            "--set-xmark" | "--set-mark" | "--or-mark" | "--xor-mark" => value & bit != 0,
            "--mark" => {
                let inverted = at > 0 && words[at - 1] == "!";
                Question { value, mask, inverted }.concerns(bit)
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIT: u32 = 0x1000;

    #[test]
    fn a_question_concerns_a_bit_that_makes_a_difference() {
        let concerns = |value, mask, inverted| Question { value, mask, inverted }.concerns(BIT);
        for (value, mask, inverted) in [
            (0x1000, 0x1000, false),
            (0, 0x1000, false),
            (0x1000, u32::MAX, false),
            (0x1337, u32::MAX, false),
            (0, 0x3000, true),
            (0x1000, 0x1000, true),
            (0x1000, 0xf000, false),
        ] {
            assert!(concerns(value, mask, inverted), "{value:#x}/{mask:#x} {inverted}");
        }
        for (value, mask, inverted) in [
            (0x4000, 0x4000, false),
            (0x4000, 0x4000, true),
            // wg-quick's.
            (0xca6c, u32::MAX, true),
            (0x10000, 0xffff_0000, false),
            (0x200, 0xf00, false),
        ] {
            assert!(!concerns(value, mask, inverted), "{value:#x}/{mask:#x} {inverted}");
        }
    }

    #[test]
    fn legacy_rules_are_read() {
        for rule in [
            "-A CNI-HOSTPORT-SETMARK -m comment --comment x -j MARK --set-xmark 0x1000/0x1000",
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x1000/0x1000 -j MASQUERADE",
            "-A X -m mark ! --mark 0x1000/0x1000 -j RETURN",
            "-A X -m mark --mark 4096 -j DROP",
        ] {
            assert!(concerns_legacy(rule, BIT), "{rule}");
        }
        for rule in [
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
            "-A X -m comment --comment \"--mark\" -j ACCEPT",
            "COMMIT",
        ] {
            assert!(!concerns_legacy(rule, BIT), "{rule}");
        }
    }
}
