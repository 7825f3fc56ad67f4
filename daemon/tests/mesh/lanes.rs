//! Lanes: flows are spread over them evenly, keep to theirs, and lose nothing when their number changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::{Node, WarrendOptions, binary};
use warren_testkit::traffic::flows::{self, Flows, PORT};
use warren_testkit::{process, wait};

use crate::common::{Mesh, in_lab, two_nodes};

/// Flows of one exchange. Each of 4 lanes gets 128 ± 10 of them by chance: that it gets fewer than [`LEAST`] happens
/// once in ten million times.
const FLOWS: u16 = 512;
const LEAST: u64 = 77;

/// Of each flow one packet, and then again: as many on each lane, since a flow stays where it is.
pub fn spread() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let lanes = start(mesh, [4, 4])?;
        let counters = Counters::install(mesh.node(1), &lanes)?;
        for ip in &mesh.pod(2, 1).ips {
            let once = || {
                flows::once(&mesh.pod(1, 1).netns, &mesh.pod(2, 1).netns, *ip, FLOWS)?;
                counters.take()
            };
            let (first, second) = (once()?, once()?);
            println!("{FLOWS} flows to {ip}: {first:?}");
            ensure!(first == second, "flows changed their lanes: {first:?}, and then {second:?}");
            ensure!(
                first.values().sum::<u64>() == u64::from(FLOWS),
                "not every flow is on a lane: {first:?}"
            );
            ensure!(first.values().all(|flows| *flows >= LEAST), "not even: {first:?}");
        }
        mesh.sealed()?;
        Ok(())
    })
}

/// `warren-perf lanes --flow` names the lane on which the flow's packets are counted.
pub fn shown() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let lanes = start(mesh, [4, 4])?;
        let counters = Counters::install(mesh.node(1), &lanes)?;
        let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
        for (source, ip) in from.ips.iter().zip(&to.ips) {
            for port in [21_001, 21_002, 21_003] {
                let (source, destination) = (SocketAddr::new(*source, port), SocketAddr::new(*ip, PORT));
                let flow = format!("udp,{source},{destination}");
                let mut command = mesh.node(1).netns.command(binary("warren-perf")?);
                command.args(["lanes", "--seconds", "3", "--flow", &flow]);
                let sending = Flows::start(&from.netns, &to.netns, *ip, port, 1)?;
                let shown = process::output(&mut command)?;
                sending.stop()?;
                let counted = counters.take()?;
                let lane = match counted.iter().filter(|(_, packets)| **packets > 0).collect::<Vec<_>>()[..] {
                    [(lane, _)] => lane,
                    _ => anyhow::bail!("{flow} is not on one lane: {counted:?}"),
                };
                // A socket gives an IPv6 packet a hash of its own making, as it does one of TCP: what routing says of
                // addresses and ports is not what happens then, and the program says that it saw otherwise.
                let chosen = format!("by its addresses and ports: {lane}\n");
                ensure!(ip.is_ipv6() || shown.contains(&chosen), "{lane}: {shown}");
                ensure!(shown.contains(&format!("out: {lane} (")), "{lane}: {shown}");
            }
        }
        Ok(())
    })
}

/// In a container, where /proc/sys cannot be written, status, metrics and keyctl say that flows are not spread, and that
/// they are once the node's administrator saw to it.
pub fn not_spread() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        node.netns.sh("mount --bind /proc/sys /proc/sys")?;
        node.netns.sh("mount -o remount,bind,ro /proc/sys")?;
        start(mesh, [4, 4])?;
        told(node, false)?;
        told(mesh.node(2), true)?;

        // As the administrator does it, from outside of the container.
        node.netns.sh("umount /proc/sys")?;
        for family in ["ipv4", "ipv6"] {
            told(node, false).context("after half of it")?;
            node.netns.sysctl(&[(&format!("net.{family}.fib_multipath_hash_policy"), "1")])?;
        }
        told(node, true)
    })
}

/// Whether a node says that its flows are spread.
fn told(node: &Node, spread: bool) -> Result<()> {
    ensure!(node.status()?.spread_by_ports == Some(spread), "status says otherwise");
    let shown = process::output(node.netns.command(binary("keyctl")?).arg("status"))?;
    ensure!(shown.contains("fib_multipath_hash_policy") != spread, "keyctl says {shown}");
    // Metrics are those of the last look.
    wait::until("the metric", Duration::from_secs(10), || {
        let line = format!("warren_lanes_spread_by_ports{{}} {}\n", if spread { "1.0" } else { "0.0" });
        let metrics = node.metrics()?;
        ensure!(metrics.contains(&line), "there is no {line:?} in {metrics}");
        Ok(())
    })
}

/// Numbers go up and down on either node, by restarts, under traffic of many flows: nothing is lost.
pub fn number_changes() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let mut numbers = [1, 1];
        start(mesh, numbers)?;
        let pings = mesh.traffic()?;
        let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
        let there = Flows::start(&from.netns, &to.netns, to.ipv4(), 22_000, 64)?;
        let back = Flows::start(&to.netns, &from.netns, from.ipv6(), 23_000, 64)?;
        for (node, number) in [(1, 4), (2, 4), (2, 2), (1, 8), (2, 8), (1, 1), (2, 1)] {
            numbers[node - 1] = number;
            mesh.node(node).stop_warrend()?;
            mesh.node(node).start_warrend(&lanes(number))?;
            await_lanes(mesh, numbers)?;
            pings.run_for(wait::patient(Duration::from_millis(300)));
        }
        let (there, back) = (there.stop()?, back.stop()?);
        let damage = pings.stop()?;
        println!(
            "7 changes: lost {} of {} and {} of {} datagrams of 64 flows, {} of {} pings",
            there.lost, there.sent, back.lost, back.sent, damage.lost, damage.sent
        );
        ensure!(there.lost == 0 && back.lost == 0, "datagrams were lost: {there:?}, {back:?}");
        damage.none()?;
        mesh.sealed()?;
        Ok(())
    })
}

/// A firewall drops one lane's port. No packet is lost on it, as it is not used; and once it is open, it is.
pub fn blocked() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        mesh.node(2).netns.nft(
            "table inet firewall {\nchain input {\ntype filter hook input priority -300\n\
             udp dport 51822 drop\n}\n}\n",
        )?;
        for node in &mesh.lab.nodes {
            node.start_warrend(&lanes(4))?;
        }
        mesh.await_up()?;
        let open = BTreeSet::from(["warren-a0", "warren-a1", "warren-a3"].map(str::to_owned));
        await_routes(mesh, |lanes| *lanes == open)?;
        let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
        let all = || to.ips.iter().try_for_each(|ip| flows::once(&from.netns, &to.netns, *ip, FLOWS));
        all().context("past the blocked lane")?;
        mesh.node(2).netns.sh("nft delete table inet firewall")?;
        await_routes(mesh, |lanes| lanes.len() == 4)?;
        all().context("with the lane open again")?;
        mesh.sealed()?;
        Ok(())
    })
}

fn lanes(number: u8) -> WarrendOptions {
    WarrendOptions { extra: vec!["--lanes".into(), number.to_string()], ..WarrendOptions::default() }
}

/// Starts both nodes with these numbers of lanes, and waits for the lanes; returns them.
fn start(mesh: &Mesh, numbers: [u8; 2]) -> Result<BTreeSet<String>> {
    for (node, number) in mesh.lab.nodes.iter().zip(numbers) {
        node.start_warrend(&lanes(number))?;
    }
    mesh.await_up()?;
    await_lanes(mesh, numbers)
}

/// Waits until both nodes send by as many lanes as they should: the smaller of their numbers.
fn await_lanes(mesh: &Mesh, [one, other]: [u8; 2]) -> Result<BTreeSet<String>> {
    let count = usize::from(one.min(other));
    mesh.await_up()?;
    await_routes(mesh, |lanes| lanes.len() == count)
}

/// Waits until the lanes that lead from each node to all networks of the other are as they should be.
fn await_routes(mesh: &Mesh, sound: impl Fn(&BTreeSet<String>) -> bool) -> Result<BTreeSet<String>> {
    // A handshake that went missing is tried again after 5 s (REKEY_TIMEOUT), by keepalives after 25 s.
    wait::until("the lanes", Duration::from_secs(40), || {
        let mut found = BTreeSet::new();
        for (node, other) in [(mesh.node(1), mesh.node(2)), (mesh.node(2), mesh.node(1))] {
            for cidr in &other.pod_cidrs {
                let lanes = leading_to(node, &cidr.to_string())?;
                ensure!(sound(&lanes), "{} reaches {cidr} by {lanes:?}", node.name);
                found = lanes;
            }
        }
        Ok(found)
    })
}

/// The lanes of a node's route.
fn leading_to(node: &Node, cidr: &str) -> Result<BTreeSet<String>> {
    let family = if cidr.contains(':') { "-6" } else { "-4" };
    let shown = node.netns.sh(&format!("ip {family} route show table 5180 {cidr}"))?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let devices = words.windows(2).filter(|pair| pair[0] == "dev" && pair[1].starts_with("warren-"));
    Ok(devices.map(|pair| pair[1].to_owned()).collect())
}

/// Counts the packets of [`flows`] that leave a node, by lane.
struct Counters<'a> {
    node: &'a Node,
    lanes: &'a BTreeSet<String>,
}

impl<'a> Counters<'a> {
    fn install(node: &'a Node, lanes: &'a BTreeSet<String>) -> Result<Self> {
        let counters: String = lanes.iter().map(|lane| format!("counter {lane} {{ }}\n")).collect();
        let rules: String = lanes
            .iter()
            .map(|lane| format!("oifname {lane} udp dport {PORT} counter name {lane}\n"))
            .collect();
        node.netns.nft(&format!(
            "table inet lanes {{\n{counters}chain post {{\ntype filter hook postrouting priority 400\n{rules}}}\n}}\n"
        ))?;
        Ok(Self { node, lanes })
    }

    /// The counts since the last call.
    fn take(&self) -> Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        for lane in self.lanes {
            let shown = self.node.netns.sh(&format!("nft reset counter inet lanes {lane}"))?;
            let mut words = shown.split_whitespace().skip_while(|word| *word != "packets").skip(1);
            let count = words.next().and_then(|count| count.parse().ok());
            counts.insert(lane.clone(), count.with_context(|| format!("nft says {shown:?}"))?);
        }
        Ok(counts)
    }
}
