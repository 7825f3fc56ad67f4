//! Tables, priorities and marks that somebody else has already.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::Node;
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

use crate::common::{Town, in_town, options, two_nodes};
use crate::encrypt_host::await_hosts;

/// What somebody else has, what makes and removes it, and the option that makes way.
struct Collision {
    what: &'static str,
    make: &'static [&'static str],
    remove: &'static [&'static str],
    option: &'static str,
}

const fn collision(
    what: &'static str,
    make: &'static [&'static str],
    remove: &'static [&'static str],
    option: &'static str,
) -> Collision {
    Collision { what, make, remove, option }
}

const COLLISIONS: &[Collision] = &[
    collision(
        "a route in a table",
        &["ip route add 10.9.0.0/16 dev eth0 table 5181"],
        &["ip route flush table 5181"],
        "--table",
    ),
    collision(
        "an IPv6 route in a table",
        &["ip route add fd09::/64 dev eth0 table 5182"],
        &["ip -6 route flush table 5182"],
        "--table",
    ),
    collision(
        "a rule that leads to a table",
        &["ip rule add from 10.9.0.0/16 lookup 5180 priority 100"],
        &["ip rule delete priority 100"],
        "--table",
    ),
    collision(
        "a rule of the same priority",
        &["ip -6 rule add from fd09::/64 lookup 99 priority 5183"],
        &["ip -6 rule delete from fd09::/64 lookup 99 priority 5183"],
        "--rule-priority",
    ),
    collision(
        "a rule that asks for the mark",
        &["ip rule add fwmark 0x1000/0x1000 lookup 99 priority 100"],
        &["ip rule delete priority 100"],
        "--mark",
    ),
    collision(
        "a rule of nftables that sets the mark",
        &[
            "nft add table ip others",
            "nft add chain ip others marks",
            "nft add rule ip others marks tcp dport 80 meta mark set meta mark or 0x1000",
        ],
        &["nft delete table ip others"],
        "--mark",
    ),
    collision(
        "a rule of nftables that asks for the mark",
        &[
            "nft add table inet others",
            "nft add chain inet others marks",
            "nft add rule inet others marks meta mark & 0x1000 == 0x1000 accept",
        ],
        &["nft delete table inet others"],
        "--mark",
    ),
    collision(
        "a rule of iptables-nft that sets the mark",
        &["iptables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x1000/0x1000"],
        &["nft delete table ip mangle"],
        "--mark",
    ),
    collision(
        "a rule of ip6tables-nft that asks for the mark",
        &["ip6tables-nft -t mangle -A PREROUTING -m mark --mark 0x1000/0x1000 -j ACCEPT"],
        &["nft delete table ip6 mangle"],
        "--mark",
    ),
    collision(
        "a rule of iptables-legacy that sets the mark",
        &["iptables-legacy -t mangle -A PREROUTING -j MARK --or-mark 0x1000"],
        &["iptables-legacy -t mangle -F"],
        "--mark",
    ),
    collision(
        "a chain behind the guard that rewrites addresses",
        &[
            "nft add table ip late",
            "nft add chain ip late out { type filter hook postrouting priority 400 ; }",
            "nft add rule ip late out ip daddr 10.9.9.9 ip daddr set 10.9.9.8",
        ],
        &["nft delete table ip late"],
        "--nft-priorities",
    ),
    collision(
        "a chain of the guard's own priority that leads to where addresses are rewritten",
        &[
            "nft add table inet early",
            "nft add chain inet early rewrite",
            "nft add rule inet early rewrite ip6 saddr set fd09::1",
            "nft add chain inet early in { type filter hook prerouting priority raw ; }",
            "nft add rule inet early in ip6 saddr fd09::2 jump rewrite",
        ],
        &["nft delete table inet early"],
        "--nft-priorities",
    ),
];

/// What others commonly have: no reason to do nothing.
const COMMON: &[&str] = &[
    "ip rule add not fwmark 0xca6c lookup 51820 priority 32764",
    "ip rule add fwmark 0x200/0xf00 lookup 2004 priority 9",
    "iptables-nft -t nat -N CNI-HOSTPORT-SETMARK",
    "iptables-nft -t nat -A CNI-HOSTPORT-SETMARK -m mark ! --mark 0x2000/0x2000 -j MARK --set-xmark 0x2000/0x2000",
    "ip6tables-nft -t mangle -A PREROUTING -j MARK --set-xmark 0x40000/0xff0000",
    "iptables-legacy -t mangle -A PREROUTING -m mark --mark 0x80/0x80 -j MARK --set-xmark 0x0/0xffff0000",
    // At the guard's own places, and beyond them, but without a word of what it judges by.
    "iptables-nft -t raw -A PREROUTING -s 10.9.9.9 -j NOTRACK",
    "nft add table inet common",
    "nft add chain inet common first { type filter hook prerouting priority -350 ; }",
    "nft add rule inet common first ip saddr 10.9.9.9 ip ttl set 9",
    "nft add chain inet common last { type filter hook postrouting priority 400 ; }",
    "nft add rule inet common last ip6 daddr fd09::9 ip6 hoplimit set 9 drop",
    // The kernel calls it at 100, whatever it says.
    "nft add chain inet common nat { type nat hook postrouting priority 500 ; }",
    "nft add rule inet common nat ip saddr 10.9.9.9 masquerade",
    // Where the guard still sees what comes out.
    "nft add table ip between",
    "nft add chain ip between middle { type filter hook postrouting priority 200 ; }",
    "nft add rule ip between middle ip saddr 10.9.9.9 ip saddr set 10.9.9.8",
];

/// warrend says what it is and which option makes way, is not ready and writes nothing; it begins once the other has
/// gone. What comes later does not stop it.
pub fn are_told() -> Result<()> {
    in_town(two_nodes(), true, |town| {
        let node = town.node(1);
        for command in COMMON {
            node.netns.sh(command)?;
        }
        for Collision { what, make, remove, option } in COLLISIONS {
            all(node, make)?;
            node.start_warrend(&options(&["--encrypt-host"]))?;
            told(node, option).with_context(|| format!("{what}, at start"))?;
            std::thread::sleep(Duration::from_millis(300));
            ensure!(!has_anything(node)?, "{what}: something of Warren's is there all the same");
            all(node, remove)?;
            wait::until("readiness", Duration::from_secs(5), || node.ready()).with_context(|| *what)?;
            ensure!(has_anything(node)?, "{what}: ready, and nothing is there");

            node.stop_warrend()?;
            all(node, make)?;
            node.start_warrend(&options(&["--encrypt-host"]))?;
            wait::until("readiness after a restart", Duration::from_secs(5), || node.ready())
                .with_context(|| *what)?;
            all(node, remove).ok();
            node.stop_warrend()?;
            node.teardown()?;
            ensure!(!has_anything(node)?, "something is left");
        }
        Ok(())
    })
}

/// Other numbers, with the documented ones taken: all works as ever, and nothing is left in the end.
pub fn are_avoided() -> Result<()> {
    const OTHERS: [&str; 9] = [
        "--encrypt-host",
        "--table",
        "7000",
        "--rule-priority",
        "110",
        "--mark",
        "0x80000",
        "--nft-priorities",
        "-310,450,-100",
    ];
    in_town(two_nodes(), true, |town| {
        for node in &town.lab.nodes {
            for Collision { make, .. } in COLLISIONS {
                all(node, make)?;
            }
        }
        town.start(&OTHERS)?;
        await_hosts(town, &[(1, 2)])?;
        town.encrypted(2 * 2 * 3 * 2, || pings(town))?;
        let node = town.node(1);
        let chains = node.netns.sh("nft list table inet warren")?;
        for priority in ["-310", "450", "-100"] {
            ensure!(chains.contains(priority) || chains.contains("raw - 10"), "{chains}");
        }
        ensure!(chains.contains("0x00080000"), "{chains}");
        ensure!(
            node.netns.sh("ip rule show priority 113")?.contains("7002"),
            "no rule leads to the table 7002"
        );

        // Back to the documented numbers, which are free now: nothing of the others stays.
        for node in &town.lab.nodes {
            for Collision { remove, .. } in COLLISIONS {
                all(node, remove).ok();
            }
            node.stop_warrend()?;
            node.start_warrend(&options(&["--encrypt-host"]))?;
        }
        town.await_up()?;
        await_hosts(town, &[(1, 2)])?;
        town.encrypted(2 * 2 * 3 * 2, || pings(town))?;
        for node in &town.lab.nodes {
            let left = node.netns.sh("ip rule")? + &node.netns.sh("ip route show table all")?;
            // Not any "700": addresses made of random ones hold it, too.
            ensure!(!["lookup 700", "table 700"].iter().any(|table| left.contains(table)), "{left}");
        }
        Ok(())
    })
}

fn pings(town: &Town) -> Result<()> {
    let (node, pod) = (town.node(1), town.pod(1, 1));
    for (from, to) in [(&node.netns, &town.node(2).ips), (&pod.netns, &town.pod(2, 1).ips)] {
        for ip in to {
            Ping { count: 3, ..Ping::default() }.run(from, *ip)?.complete()?;
        }
    }
    Ok(())
}

fn all(node: &Node, commands: &[&str]) -> Result<()> {
    commands.iter().try_for_each(|command| node.netns.sh(command).map(drop))
}

fn told(node: &Node, option: &str) -> Result<()> {
    wait::until("the complaint", Duration::from_secs(5), || {
        let error = node.ready().err().context("it says it is ready")?.to_string();
        ensure!(error.contains(option), "it says {error}");
        Ok(())
    })
}

/// Whether there is anything of Warren's on a node.
fn has_anything(node: &Node) -> Result<bool> {
    let tables = node.netns.sh("nft list tables")?;
    let links = node.netns.sh("ip link show")?;
    let rules = node.netns.sh("ip -details rule")? + &node.netns.sh("ip -6 -details rule")?;
    Ok(tables.contains("inet warren") || links.contains("warren-") || rules.contains("proto 157"))
}
