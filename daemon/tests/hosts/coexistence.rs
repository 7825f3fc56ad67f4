//! Others who configure the same nodes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::{Families, Node, Plan};
use warren_testkit::wait;

use crate::common::{Town, in_town, no_ping, ping, two_nodes};
use crate::encrypt_host::await_hosts;

fn talk(town: &Town) -> Result<()> {
    for (here, there) in [(1, 2), (2, 1)] {
        for ip in &town.pod(there, 1).ips {
            ping(&town.pod(here, 1).netns, *ip)?;
            ping(&town.node(here).netns, *ip)?;
        }
    }
    Ok(())
}

/// What others have on a node.
fn state(node: &Node) -> Result<String> {
    let mut state = String::new();
    for command in [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
    ] {
        state += &node.netns.sh(command)?;
    }
    Ok(state)
}

fn teardown(town: &Town) -> Result<()> {
    for node in &town.lab.nodes {
        node.stop_warrend()?;
    }
    for node in &town.lab.nodes {
        node.teardown()?;
    }
    Ok(())
}

/// What was there before is there after Warren, and carries pods as before.
fn before_and_after(town: &Town, change: impl Fn(&Node) -> Result<()>) -> Result<()> {
    let before: Vec<String> = town.lab.nodes.iter().map(state).collect::<Result<_>>()?;
    town.in_the_clear(|| talk(town)).context("without Warren")?;
    town.start(&[])?;
    town.encrypted(4 * 6, || talk(town))?;
    for node in &town.lab.nodes {
        change(node)?;
    }
    town.encrypted(4 * 6, || talk(town)).context("with routes that come later")?;
    teardown(town)?;
    for (node, before) in town.lab.nodes.iter().zip(before) {
        let after = state(node)?;
        ensure!(after == before, "{} was\n{before}\nand is\n{after}", node.name);
    }
    town.in_the_clear(|| talk(town)).context("after Warren")
}

pub fn host_gateway() -> Result<()> {
    in_town(two_nodes(), false, |town| {
        before_and_after(town, |node| {
            let other = 3 - node.number;
            for (cidr, via) in town.lab.plan.pod_cidrs(other).into_iter().zip(&town.node(other).ips) {
                // The CNI's agent restarts and writes its routes anew.
                node.netns.ip(&format!("route delete {cidr}\nroute add {cidr} via {via} dev eth0"))?;
            }
            Ok(())
        })
    })
}

/// As flannel sets it up, with the network address of the pod CIDR on its interface, which Warren's has, too.
pub fn vxlan() -> Result<()> {
    in_town(Plan { overlay: Families::V4, ..two_nodes() }, false, |town| {
        let mac = |number: usize| format!("0a:00:00:00:00:{number:02x}");
        for node in &town.lab.nodes {
            let (number, other) = (node.number, 3 - node.number);
            let there = town.node(other).ips[0];
            node.netns.ip(&format!(
                "link add flannel.1 address {} mtu 1450 type vxlan id 1 dev eth0 dstport 8472 nolearning\n\
                 address add 10.244.{number}.0/32 dev flannel.1\nlink set flannel.1 up\n\
                 route replace 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink\n\
                 neigh replace 10.244.{other}.0 lladdr {} dev flannel.1 nud permanent\n",
                mac(number),
                mac(other)
            ))?;
            node.netns
                .sh(&format!("bridge fdb append {} dev flannel.1 dst {there} self permanent", mac(other)))?;
        }
        before_and_after(town, |node| {
            let other = 3 - node.number;
            let cidr = format!("10.244.{other}.0/24");
            let route = format!("{cidr} via 10.244.{other}.0 dev flannel.1 onlink");
            node.netns.ip(&format!("route delete {cidr}\nroute add {route}"))
        })
    })
}

/// Somebody marks every packet with all that kube-proxy and portmap use; rules stand before and behind Warren's. One
/// before them that leads pods' packets elsewhere stops them, and is no way out.
pub fn marks_and_rules() -> Result<()> {
    in_town(two_nodes(), true, |town| {
        for node in &town.lab.nodes {
            node.netns.nft(
                "table inet marks {\n\
                 chain pre { type filter hook prerouting priority -350; meta mark set meta mark or 0xe000; }\n\
                 chain out { type route hook output priority -350; meta mark set meta mark or 0xe000; }\n}\n",
            )?;
            for priority in [5179, 5184] {
                node.netns.ip(&format!("rule add fwmark 0x8000/0x8000 lookup 777 priority {priority}"))?;
            }
        }
        town.start(&["--encrypt-host"])?;
        await_hosts(town, &[(1, 2)])?;
        town.encrypted(4 * 6, || talk(town))?;

        let node = town.node(1);
        let other = town.node(2).ips[0];
        node.netns.ip(&format!(
            "rule add fwmark 0x8000/0x8000 lookup 777 priority 5180\nroute add 10.244.2.0/24 via {other} dev eth0 table 777\nroute add {other} dev eth0 table 777"
        ))?;
        let target = town.pod(2, 1).ipv4();
        no_ping(&town.pod(1, 1).netns, target).context("past the tunnel")?;
        no_ping(&node.netns, target).context("past the tunnel")?;
        town.silent()?;
        wait::until("the count", Duration::from_secs(5), || {
            let counted = node.status()?.guard;
            ensure!(counted.out_pod > 0, "{counted:?}");
            Ok(())
        })?;
        node.netns.sh("ip -4 rule delete priority 5179")?;
        town.encrypted(4 * 6, || talk(town))
            .context("with rules of others at the same priority and behind")?;
        let rules = node.netns.sh("ip -4 rule show table 777")?;
        ensure!(rules.lines().count() == 2, "others' rules: {rules}");
        Ok(())
    })
}
