//! Somebody else's interface with the name of a tunnel: whether it stays as it was, and what gets into it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use warren_testkit::lab::Node;
use warren_testkit::wait;

use crate::common::{Mesh, no_talk, talk};

/// What there is of them; each is of a kind that a tunnel of Warren's is, or is not.
pub const KINDS: [&str; 3] = ["bridge", "wireguard", "tuntap"];

/// An interface `warren-a0` of node 1 that Warren did not make.
pub struct Stranger<'a> {
    mesh: &'a Mesh,
    node: &'a Node,
    before: String,
}

impl<'a> Stranger<'a> {
    /// Makes one, up, with an address and an MTU that no tunnel has; and counts pods' packets that leave the node by it.
    pub fn make(mesh: &'a Mesh, kind: &str) -> Result<Self> {
        let node = mesh.node(1);
        let make = match kind {
            "tuntap" => "tuntap add dev warren-a0 mode tun".to_owned(),
            kind => format!("link add warren-a0 type {kind}"),
        };
        node.netns.ip(&format!(
            "{make}\nlink set warren-a0 mtu 1400 up\naddress add 203.0.113.9/24 dev warren-a0"
        ))?;
        let rule = |net: &IpNet| {
            let family = if matches!(net, IpNet::V4(_)) { "ip" } else { "ip6" };
            ["saddr", "daddr"]
                .map(|end| format!("oifname warren-a0 {family} {end} {net} counter name entered\n"))
                .concat()
        };
        let rules: String = mesh.lab.plan.cluster_cidrs().iter().map(rule).collect();
        node.netns.nft(&format!(
            "table inet stranger {{\ncounter entered {{ }}\n\
             chain post {{\ntype filter hook postrouting priority 400\n{rules}}}\n}}\n"
        ))?;
        Ok(Self { mesh, node, before: state(node)? })
    }

    /// Fails unless it is as it was, now and some looks later, while pods try to reach each other: nothing leads into it,
    /// nothing gets into it, and nothing passes.
    pub fn await_left_alone(&self) -> Result<()> {
        let looks = || self.node.metric("warren_failed_looks_total{}");
        let first = looks()?;
        no_talk(self.mesh.pod(1, 1), self.mesh.pod(2, 1))?;
        no_talk(self.mesh.pod(2, 1), self.mesh.pod(1, 1))?;
        wait::until("more looks", Duration::from_secs(5), || {
            ensure!(looks()? >= first + 3, "only {} looks since", looks()? - first);
            Ok(())
        })?;
        let after = state(self.node)?;
        ensure!(after == self.before, "it was\n{}and is\n{after}", self.before);
        for family in ["-4", "-6"] {
            // Warren's own, in whatever table; and whatever is in Warren's.
            for which in ["table all proto 157", "table 5180", "table 5181", "table 5182"] {
                let routes =
                    self.node.netns.sh(&format!("ip {family} route show {which}")).unwrap_or_default();
                ensure!(!routes.contains("warren-a0"), "something leads into it:\n{routes}");
            }
        }
        let entered = self.entered()?;
        ensure!(entered == 0, "{entered} packets of pods got into it");
        self.mesh.silent().map(drop)
    }

    /// Takes it away, and fails unless the node joins, with a tunnel in its place that pods' packets are counted at.
    pub fn makes_room(&self) -> Result<()> {
        self.node.netns.ip("link delete warren-a0")?;
        self.mesh.await_up()?;
        talk(self.mesh.pod(1, 1), self.mesh.pod(2, 1))?;
        ensure!(self.entered()? > 0, "the control: pods' packets that leave by warren-a0 are not counted");
        self.mesh.sealed().map(drop)
    }

    fn entered(&self) -> Result<u64> {
        let shown = self.node.netns.sh("nft list counter inet stranger entered")?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words.next().and_then(|count| count.parse().ok()).with_context(|| format!("nft says {shown:?}"))
    }
}

/// What Warren sets on a tunnel's interface.
fn state(node: &Node) -> Result<String> {
    // Of the flags, those that somebody sets: that there is no carrier is told up to a second later.
    let files = "cat /sys/class/net/warren-a0/flags /sys/class/net/warren-a0/mtu \
                 /proc/sys/net/ipv4/conf/warren-a0/rp_filter";
    let addresses = "ip -oneline address show dev warren-a0 scope global";
    Ok(node.netns.sh(files)? + &node.netns.sh(addresses)?)
}
