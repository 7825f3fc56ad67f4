//! Lanes: flows are spread over them evenly, keep to theirs, and lose nothing when their number changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use warren_testkit::lab::{Node, WarrendOptions, binary};
use warren_testkit::traffic::flows::{self, Flows, PORT};
use warren_testkit::traffic::tcp::Chat;
use warren_testkit::{process, wait};

use crate::common::{Mesh, in_lab, two_nodes};

/// Flows of one exchange. Each of 4 lanes gets 128 ± 10 of them by chance: that it gets fewer than [`LEAST`] happens
/// once in ten million times.
const FLOWS: u16 = 512;
const LEAST: u64 = 77;

/// Of each flow one packet, and then again: as many on each lane, since a flow stays where it is.
pub fn spread() -> Result<()> {
    in_lab(two_nodes(), |mesh| spread_over(mesh, &[]))
}

/// Also where the reverse-path filter is strict, and nodes' own programs' packets take the lanes, too, or not. It is made
/// loose where packets arrive whose answers go elsewhere, and nowhere else.
pub fn spread_under_strict_filters() -> Result<()> {
    for extra in [&["--encrypt-host"][..], &[]] {
        in_lab(two_nodes(), |mesh| under_strict_filters(mesh, extra, || spread_over(mesh, extra)))
            .with_context(|| format!("with {extra:?}"))?;
    }
    Ok(())
}

fn spread_over(mesh: &Mesh, extra: &[&str]) -> Result<()> {
    let lanes = start(mesh, [4, 4], extra)?;
    let counters = Counters::install(mesh.node(1), &lanes)?;
    for ip in &mesh.pod(2, 1).ips {
        let once = || {
            flows::once(&mesh.pod(1, 1).netns, &mesh.pod(2, 1).netns, *ip, FLOWS)?;
            counters.take()
        };
        let (first, second) = (once()?, once()?);
        println!("{FLOWS} flows to {ip}: {first:?}");
        ensure!(first == second, "flows changed their lanes: {first:?}, and then {second:?}");
        ensure!(first.values().sum::<u64>() == u64::from(FLOWS), "not every flow is on a lane: {first:?}");
        ensure!(first.values().all(|flows| *flows >= LEAST), "not even: {first:?}");
    }
    mesh.sealed()?;
    Ok(())
}

/// Makes the filters of both nodes strict, as some distributions have them; fails if any has changed afterwards but those
/// of the tunnels and, where nodes' own packets are encrypted, of the link on which they arrive.
fn under_strict_filters(mesh: &Mesh, extra: &[&str], scenario: impl FnOnce() -> Result<()>) -> Result<()> {
    for node in &mesh.lab.nodes {
        node.netns.sysctl(&[("net.ipv4.conf.all.rp_filter", "1")])?;
    }
    let read = || mesh.lab.nodes.iter().map(Node::reverse_path_filters).collect::<Result<Vec<_>>>();
    let before = read()?;
    scenario()?;
    for (before, after) in before.iter().zip(read()?) {
        let mut expected = before.clone();
        if extra.contains(&"--encrypt-host") {
            expected.insert("eth0".to_owned(), "2".to_owned());
        }
        let (lanes, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            after.into_iter().partition(|(interface, _)| interface.starts_with("warren-"));
        ensure!(others == expected, "the filters were {before:?}, and are {others:?}");
        ensure!(!lanes.is_empty() && lanes.values().all(|filter| filter == "2"), "of the lanes: {lanes:?}");
    }
    Ok(())
}

/// `warren-perf lanes --flow` names the lane on which the flow's packets are counted.
pub fn shown() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let lanes = start(mesh, [4, 4], &[])?;
        let counters = Counters::install(mesh.node(1), &lanes)?;
        let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
        for (source, ip) in from.ips.iter().zip(&to.ips) {
            for port in [21_001, 21_002, 21_003] {
                let (source, destination) = (SocketAddr::new(*source, port), SocketAddr::new(*ip, PORT));
                let flow = format!("udp,{source},{destination}");
                let sending = Flows::start(&from.netns, &to.netns, *ip, port, 1)?;
                let shown = show(mesh.node(1), &flow)?;
                sending.stop()?;
                let lane = counters.one_lane().context(flow)?;
                // A socket gives an IPv6 packet a hash of its own making, as it does one of TCP: what routing says of
                // addresses and ports is not what happens then, and the program says that it saw otherwise.
                let chosen = format!("by its addresses and ports: {lane}\n");
                ensure!(ip.is_ipv6() || shown.contains(&chosen), "{lane}: {shown}");
                ensure!(shown.contains(&format!("out: {lane} (")), "{lane}: {shown}");
            }
            let port = 21_004;
            let (source, destination) = (SocketAddr::new(*source, port), SocketAddr::new(*ip, PORT));
            let connection = Chat::start(&from.netns, port, &to.netns, *ip, PORT)?;
            counters.take()?;
            let shown = show(mesh.node(1), &format!("tcp,{source},{destination}"))?;
            connection.stop()?;
            let lane = counters.one_lane().with_context(|| format!("TCP to {ip}"))?;
            ensure!(shown.contains(&format!("out: {lane} (")), "{lane}: {shown}");
        }
        Ok(())
    })
}

/// In a container, where /proc/sys cannot be written, status, metrics and keyctl say that flows are not spread, and that
/// they are once the node's administrator saw to it.
pub fn not_spread() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let outside = node.state_dir().with_extension("sysctls");
        fs::create_dir_all(&outside)?;
        node.netns.sh(&format!("mount --bind /proc/sys {}", outside.display()))?;
        node.netns.sh("mount --bind /proc/sys /proc/sys")?;
        node.netns.sh("mount -o remount,bind,ro /proc/sys")?;
        start(mesh, [4, 4], &[])?;
        told(node, false)?;
        told(mesh.node(2), true)?;

        // As the administrator does it, from outside of the container.
        for family in ["ipv4", "ipv6"] {
            told(node, false).context("after half of it")?;
            let file = outside.join(format!("net/{family}/fib_multipath_hash_policy"));
            node.netns.run(|| fs::write(file, "1"))??;
        }
        told(node, true)?;
        let said = node.log().lines().filter(|line| line.contains("may share a lane")).count();
        ensure!(said == 1, "the log says {said} times that flows may share a lane");

        // What is not Warren's doing stays.
        node.stop_warrend()?;
        node.teardown()?;
        ensure!(node.hash_policies()? == ["1", "1"], "teardown took back what the administrator set");
        Ok(())
    })
}

/// Somebody resets by what flows are spread, and it is set again. Where one lane is left, and where Warren is taken off,
/// it is as before; what somebody chose otherwise stays throughout.
pub fn spread_is_kept() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let policies = |expected: [&str; 2]| {
            wait::until("the policy", Duration::from_secs(10), || {
                let found = node.hash_policies()?;
                ensure!(found == expected, "it is {found:?}, not {expected:?}");
                Ok(())
            })
        };
        let restart = |number| {
            node.stop_warrend()?;
            node.start_warrend(&lanes(number, &[]))
        };
        policies(["0", "0"])?;
        start(mesh, [4, 4], &[])?;
        policies(["1", "1"])?;
        node.netns.sysctl(&[("net.ipv4.fib_multipath_hash_policy", "0")])?;
        policies(["1", "1"]).context("after somebody reset it")?;
        told(node, true)?;
        restart(1)?;
        policies(["0", "0"]).context("with one lane")?;
        restart(4)?;
        policies(["1", "1"]).context("with several again")?;
        node.netns.sysctl(&[("net.ipv6.fib_multipath_hash_policy", "2")])?;
        await_lanes(mesh, [4, 4])?;
        // A look later.
        let looks = || node.metric("warren_looks_total{}");
        let before = looks()?;
        wait::until("a look", Duration::from_secs(10), || {
            ensure!(looks()? > before, "no look yet");
            Ok(())
        })?;
        ensure!(node.hash_policies()? == ["1", "2"], "it is {:?}", node.hash_policies()?);
        node.stop_warrend()?;
        node.teardown()?;
        ensure!(node.hash_policies()? == ["0", "2"], "teardown leaves {:?}", node.hash_policies()?);
        mesh.sealed()?;
        Ok(())
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

/// What `warren-perf lanes` says of a flow.
fn show(node: &Node, flow: &str) -> Result<String> {
    let mut command = node.netns.command(binary("warren-perf")?);
    process::output(command.args(["lanes", "--seconds", "1", "--flow", flow]))
}

/// Numbers go up and down on either node, by restarts, under traffic of many flows: nothing is lost.
pub fn number_changes() -> Result<()> {
    in_lab(two_nodes(), |mesh| change_numbers(mesh, &[]))
}

/// [`number_changes`] as in [`spread_under_strict_filters`].
pub fn number_changes_under_strict_filters() -> Result<()> {
    let extra = &["--encrypt-host"];
    in_lab(two_nodes(), |mesh| under_strict_filters(mesh, extra, || change_numbers(mesh, extra)))
}

fn change_numbers(mesh: &Mesh, extra: &[&str]) -> Result<()> {
    let mut numbers = [1, 1];
    start(mesh, numbers, extra)?;
    let pings = mesh.traffic()?;
    let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
    let there = Flows::start(&from.netns, &to.netns, to.ipv4(), 22_000, 64)?;
    let back = Flows::start(&to.netns, &from.netns, from.ipv6(), 23_000, 64)?;
    for (node, number) in [(1, 4), (2, 4), (2, 2), (1, 8), (2, 8), (1, 1), (2, 1)] {
        numbers[node - 1] = number;
        mesh.node(node).stop_warrend()?;
        mesh.node(node).start_warrend(&lanes(number, extra))?;
        await_lanes(mesh, numbers)?;
        pings.run_for(Duration::from_millis(300));
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
}

/// A firewall drops one lane's port. No packet is lost on it, as it is not used; and once it is open, it is.
pub fn blocked() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        mesh.node(2).netns.nft(
            "table inet firewall {\nchain input {\ntype filter hook input priority -300\n\
             udp dport 51822 drop\n}\n}\n",
        )?;
        for node in &mesh.lab.nodes {
            node.start_warrend(&lanes(4, &[]))?;
        }
        mesh.await_up()?;
        await_routes(mesh, |lanes| *lanes == without_lane_2())?;
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

/// So many lanes; that one has proven itself is seen at a look.
pub fn lanes(number: u8, extra: &[&str]) -> WarrendOptions {
    let number = number.to_string();
    let extra = ["--lanes", &number].into_iter().chain(extra.iter().copied()).map(str::to_owned);
    WarrendOptions { extra: extra.collect(), resync: Some("1s".into()), ..WarrendOptions::default() }
}

/// The others of four.
pub fn without_lane_2() -> BTreeSet<String> {
    ["warren-a0", "warren-a1", "warren-a3"].map(str::to_owned).into()
}

/// Starts both nodes with these numbers of lanes, and waits for the lanes; returns them.
fn start(mesh: &Mesh, numbers: [u8; 2], extra: &[&str]) -> Result<BTreeSet<String>> {
    for (node, number) in mesh.lab.nodes.iter().zip(numbers) {
        node.start_warrend(&lanes(number, extra))?;
    }
    mesh.await_up()?;
    await_lanes(mesh, numbers)
}

/// Waits until both nodes send by as many lanes as they should: the smaller of their numbers.
pub fn await_lanes(mesh: &Mesh, [one, other]: [u8; 2]) -> Result<BTreeSet<String>> {
    let count = usize::from(one.min(other));
    mesh.await_up()?;
    await_routes(mesh, |lanes| lanes.len() == count)
}

/// Waits until the lanes that lead from each node to all networks of the other are as they should be.
pub fn await_routes(mesh: &Mesh, sound: impl Fn(&BTreeSet<String>) -> bool) -> Result<BTreeSet<String>> {
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
            .map(|lane| {
                format!("oifname {lane} meta l4proto {{ tcp, udp }} th dport {PORT} counter name {lane}\n")
            })
            .collect();
        node.netns.nft(&format!(
            "table inet lanes {{\n{counters}chain post {{\ntype filter hook postrouting priority 400\n{rules}}}\n}}\n"
        ))?;
        Ok(Self { node, lanes })
    }

    /// The lane on which all packets since the last call were.
    fn one_lane(&self) -> Result<String> {
        let counted = self.take()?;
        match counted.iter().filter(|(_, packets)| **packets > 0).collect::<Vec<_>>()[..] {
            [(lane, _)] => Ok(lane.clone()),
            _ => bail!("not on one lane: {counted:?}"),
        }
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
