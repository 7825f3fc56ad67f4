//! One lane of four is in trouble, or all are at once: the others carry on, and it is told and put right.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_api::names;
use warren_testkit::lab::{Backend, Node, Rights, WarrendOptions, binary};
use warren_testkit::traffic::flows;
use warren_testkit::{process, wait};

use crate::backends::await_problem;
use crate::common::{Mesh, REPAIR, in_lab, talk, two_nodes};
use crate::lanes::{await_lanes, await_routes, lanes, without_lane_2};

/// The node whose `warren-tunnel` gets into trouble: it has one unless all nodes' tunnels are the kernel's.
const SERVED: usize = 2;

/// So many that each lane gets some of them.
const FLOWS: u16 = 128;

/// How long a tunnel may be silent before it is killed, and what it takes to start another.
const SILENCE: Duration = Duration::from_secs(40);

/// Four lanes with the rights of the manifest: another container serves them.
fn as_in_the_manifest() -> WarrendOptions {
    WarrendOptions { rights: Rights::Manifest, ..lanes(4, &[]) }
}

fn in_four_lanes(options: &WarrendOptions, scenario: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        for node in &mesh.lab.nodes {
            if options.rights == Rights::Manifest {
                node.start_tunnel()?;
            }
            node.start_warrend(options)?;
        }
        await_lanes(mesh, [4, 4])?;
        scenario(mesh)
    })
}

/// A datagram of each of many flows in both directions, over every address family.
fn all_flows(mesh: &Mesh) -> Result<()> {
    for (from, to) in [(mesh.pod(1, 1), mesh.pod(2, 1)), (mesh.pod(2, 2), mesh.pod(1, 2))] {
        to.ips.iter().try_for_each(|ip| flows::once(&from.netns, &to.netns, *ip, FLOWS))?;
    }
    Ok(())
}

/// Somebody else has the port of one lane, from the start. The node joins with the others.
pub fn port_taken() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let port = names::LISTEN_PORT + 2;
        let other = node.netns.run(|| UdpSocket::bind(("0.0.0.0", port)))??;
        mesh.lab.start_all(&lanes(4, &[]))?;
        await_routes(mesh, |lanes| *lanes == without_lane_2())?;
        await_problem(node, &format!("UDP port {port} is taken"))?;
        all_flows(mesh).context("past the lane without a port")?;
        drop(other);
        await_lanes(mesh, [4, 4])?;
        all_flows(mesh).context("with its port")?;
        mesh.sealed().map(drop)
    })
}

/// Somebody else's interface has the name of one lane, for which an earlier daemon asked. The node joins with the others,
/// and the kubelet finds nothing wrong with the container that serves them.
pub fn name_taken() -> Result<()> {
    ["link add warren-a2 type bridge", "tuntap add dev warren-a2 mode tun"]
        .into_iter()
        .try_for_each(|make| name_taken_by(make).with_context(|| make.to_owned()))
}

fn name_taken_by(make: &str) -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        node.netns.ip(&format!("{make}\nlink set warren-a2 up"))?;
        let wanted = "/run/wireguard/warren-a2.wanted";
        node.netns.sh(&format!("touch {wanted}"))?;
        node.start_tunnel()?;
        let probe = || {
            let mut command = node.netns.command(binary("warren-tunnel")?);
            process::output(command.args(["--on-demand", "--probe", names::INTERFACE_PREFIX]))
        };
        ensure!(probe().is_err(), "the control: the probe does not see that warren-a2 is not served");
        node.start_warrend(&as_in_the_manifest())?;
        mesh.node(2).start_warrend(&lanes(4, &[]))?;
        await_routes(mesh, |lanes| *lanes == without_lane_2())?;
        await_problem(node, "warren-a2 is not Warren")?;
        ensure!(!node.netns.run(|| fs::exists(wanted))??, "warren-a2 is still asked for");
        probe().context("of what is wanted, all is served")?;
        all_flows(mesh).context("past the lane whose name is taken")?;
        node.netns.ip("link delete warren-a2")?;
        await_lanes(mesh, [4, 4])?;
        probe().context("with all lanes")?;
        mesh.sealed().map(drop)
    })
}

/// The kubelet kills the container that serves all lanes, and starts it anew; then it ends it in order. Lanes in the
/// kernel do not notice.
pub fn container() -> Result<()> {
    in_four_lanes(&as_in_the_manifest(), |mesh| match mesh.node(SERVED).backend {
        Backend::Userspace => container_with_lanes(mesh),
        Backend::Kernel => container_without_lanes(mesh),
    })
}

fn container_with_lanes(mesh: &Mesh) -> Result<()> {
    let node = mesh.node(SERVED);
    for turn in ["at first", "after a restart"] {
        private_sockets(node).context(turn)?;
        all_flows(mesh).context(turn)?;
        mesh.sealed()?;
        if turn == "at first" {
            let start = Instant::now();
            node.kill_tunnel()?;
            node.start_tunnel()?;
            await_lanes(mesh, [4, 4])?;
            println!("four lanes are back after {:?}", start.elapsed());
        }
    }
    node.stop_warrend()?;
    node.stop_tunnel()?;
    let links = node.netns.sh("ip -brief link")?;
    ensure!(!links.contains("warren-"), "left behind: {links}");
    node.start_warrend(&as_in_the_manifest())?;
    node.start_tunnel()?;
    await_lanes(mesh, [4, 4])?;
    all_flows(mesh).context("after a restart of both")?;
    mesh.sealed().map(drop)
}

fn container_without_lanes(mesh: &Mesh) -> Result<()> {
    let node = mesh.node(SERVED);
    let before = identities(node)?;
    let traffic = mesh.traffic()?;
    node.stop_tunnel()?;
    node.start_tunnel()?;
    await_lanes(mesh, [4, 4])?;
    node.stop_warrend()?;
    node.stop_tunnel()?;
    ensure!(identities(node)? == before, "there were {before:?}, and are {:?}", identities(node)?);
    node.start_warrend(&as_in_the_manifest())?;
    node.start_tunnel()?;
    await_lanes(mesh, [4, 4])?;
    all_flows(mesh)?;
    ensure!(identities(node)? == before, "there were {before:?}, and are {:?}", identities(node)?);
    traffic.stop()?.none()?;
    mesh.sealed().map(drop)
}

/// Whoever may open one of the sockets is told the private key.
fn private_sockets(node: &Node) -> Result<()> {
    for lane in 0..4 {
        let path = format!("/run/wireguard/{}.sock", names::interface(0, lane));
        let mode = node.netns.run(|| fs::metadata(&path))??.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{path} has mode {mode:o}");
    }
    Ok(())
}

/// One lane's process is killed, or its interface deleted: it is back soon, and the others never went.
pub fn killed() -> Result<()> {
    in_four_lanes(&lanes(4, &[]), |mesh| {
        let node = mesh.node(1);
        let others = identities(node)?;
        node.kill_lane(2)?;
        let start = Instant::now();
        wait::until("another lane", REPAIR, || {
            ensure!(identities(node)?[2] != others[2], "it is still the same");
            Ok(())
        })?;
        await_sessions(mesh, node)?;
        println!("one lane is back after {:?}", start.elapsed());
        only_lane_2_changed(node, &others)?;
        all_flows(mesh)?;
        mesh.sealed().map(drop)
    })
}

/// One lane's process hangs: it is killed, and the others are not, whatever they did before.
pub fn hung() -> Result<()> {
    Backend::of(SERVED)?.needs_process()?;
    in_four_lanes(&lanes(4, &[]), |mesh| {
        let node = mesh.node(SERVED);
        let others = identities(node)?;
        let pid = Pid::from_raw(node.lane_pid(2)? as i32);
        kill(pid, Signal::SIGSTOP)?;
        let start = Instant::now();
        wait::until("the end of the lane that hangs", SILENCE, || {
            ensure!(identities(node)?[2] != others[2], "it is still the same");
            Ok(())
        })?;
        println!("a lane that hung was replaced after {:?}", start.elapsed());
        await_sessions(mesh, node)?;
        only_lane_2_changed(node, &others)?;
        all_flows(mesh)?;
        mesh.sealed().map(drop)
    })
}

/// Waits until a node has a session on each lane, and both use all of them.
fn await_sessions(mesh: &Mesh, node: &Node) -> Result<()> {
    wait::until("a session on each lane", Duration::from_secs(40), || {
        let lanes = node.status()?.peers.first().map(|peer| peer.lanes);
        ensure!(lanes == Some(4), "there are sessions on {lanes:?}");
        Ok(())
    })?;
    await_lanes(mesh, [4, 4]).map(drop)
}

/// The numbers of the lanes' interfaces, which the kernel gives to no other.
fn identities(node: &Node) -> Result<[Option<u32>; 4]> {
    let links = node.netns.sh("ip -oneline link")?;
    let number = |lane: u8| {
        let name = names::interface(0, lane);
        let mut numbers = links.lines().filter_map(|line| {
            let mut words = line.split(':').map(str::trim);
            let number = words.next()?.parse().ok()?;
            words.next()?.split('@').next().filter(|found| *found == name).map(|_| number)
        });
        numbers.next()
    };
    Ok([0, 1, 2, 3].map(number))
}

fn only_lane_2_changed(node: &Node, before: &[Option<u32>; 4]) -> Result<()> {
    let after = identities(node)?;
    let changed: BTreeSet<usize> = (0..4).filter(|lane| before[*lane] != after[*lane]).collect();
    ensure!(changed == BTreeSet::from([2]), "not only lane 2 was made anew: {before:?}, {after:?}");
    Ok(())
}

/// The directory of the sockets can be read by nobody. What goes through the lanes goes on; guard and routes are kept in
/// order as always; and both programs find back by themselves.
pub fn sockets_unreadable() -> Result<()> {
    in_four_lanes(&as_in_the_manifest(), |mesh| {
        let node = mesh.node(SERVED);
        let before = (node.tunnel()?, identities(node)?);
        let traffic = mesh.traffic()?;
        node.netns.sh("chmod 0 /run/wireguard")?;
        for damage in ["nft delete table inet warren", "ip route flush table 5180"] {
            node.netns.sh(damage)?;
            let start = Instant::now();
            wait::until("the repair", Duration::from_secs(10), || {
                node.netns.sh("nft list table inet warren")?;
                ensure!(node.netns.sh("ip route show table 5180")?.contains("dev warren-"), "no routes");
                Ok(())
            })?;
            println!("without sockets, after `{damage}`: repaired after {:?}", start.elapsed());
            ensure!(start.elapsed() < wait::patient(REPAIR), "too late");
        }
        await_problem(node, "cannot be listed")?;
        // The program that serves on demand looks now.
        node.netns.sh("chmod 755 /run/wireguard")?;
        node.netns.sh("touch /run/wireguard/other.wanted")?;
        await_lanes(mesh, [4, 4])?;
        ensure!((node.tunnel()?, identities(node)?) == before, "the tunnels were started anew");
        let damage = traffic.stop()?;
        ensure!(damage.outage < wait::patient(REPAIR), "no answer for {:?}", damage.outage);
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.sealed().map(drop)
    })
}
