//! Meshes of every shape: underlays, packet sizes, enforcement.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_api::status::Enforcement;
use warren_testkit::lab::{Families, Plan, WarrendOptions};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::traffic::tcp;
use warren_testkit::wait;

use crate::common::{in_lab, in_mesh, no_talk, talk, two_nodes};

/// Between pings of which each is to profit from what became of the one before, [`wait::patient`].
const SPACE: Duration = Duration::from_millis(50);

/// IPv4 and IPv6 pods over IPv4, IPv6 and dual-stack underlays, and single-stack pods.
pub fn underlays() -> Result<()> {
    for (underlay, overlay) in [
        (Families::V4, Families::V4),
        (Families::V6, Families::V6),
        (Families::V4, Families::Dual),
        (Families::V6, Families::Dual),
        (Families::Dual, Families::Dual),
    ] {
        in_mesh(Plan { underlay, overlay, ..Plan::default() }, |mesh| {
            for from in mesh.lab.pods() {
                for to in mesh.lab.pods().filter(|to| to.node != from.node) {
                    talk(from, to)?;
                }
            }
            mesh.sealed()?;
            Ok(())
        })
        .with_context(|| format!("pods {overlay:?} over an underlay {underlay:?}"))?;
    }
    Ok(())
}

/// Pods reach the addresses of other nodes, and nodes the pods of others, through the tunnel; and when it is
/// gone, pods do not reach them in the clear either, as whoever the CNI makes them on their way out.
pub fn pods_and_nodes() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        let ping = Ping { count: 3, patience: Duration::from_millis(200), ..Ping::default() };
        let (pod, node, other) = (mesh.pod(1, 1), mesh.node(1), mesh.node(2));
        for ip in &other.ips {
            ping.run(&pod.netns, *ip)?.complete().with_context(|| format!("{} to {ip}", pod.name))?;
        }
        for ip in &mesh.pod(2, 1).ips {
            ping.run(&node.netns, *ip)?.complete().with_context(|| format!("{} to {ip}", node.name))?;
        }
        let report = mesh.sealed()?;
        ensure!(report.wireguard_data >= 24, "four times three pings and answers, but {report:?}");

        node.kill_warrend()?;
        node.kill_tunnel()?;
        for ip in &other.ips {
            let answers = ping.run(&pod.netns, *ip)?;
            ensure!(answers.received == 0, "{} reached {ip} without a tunnel: {answers}", pod.name);
        }
        mesh.silent()?;
        Ok(())
    })
}

/// Pods keep the MTU of the underlay, which is more than fits into the tunnel: TCP is told a smaller
/// segment, and the rest is fragmented inside of the tunnel, never outside.
pub fn large_packets() -> Result<()> {
    for mtu in [1500, 9000] {
        in_mesh(Plan { mtu, ..two_nodes() }, |mesh| {
            let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
            let inside = mesh.node(1).status()?.mtu;
            ensure!(inside == mtu - 80, "the tunnel's MTU is {inside} over an underlay of {mtu} bytes");
            for ip in &to.ips {
                let headers = if ip.is_ipv4() { 28 } else { 48 };
                let of_size = |bytes: u32, dont_fragment| Ping {
                    size: (bytes - headers) as u16,
                    dont_fragment,
                    ..Ping::default()
                };
                of_size(inside, true)
                    .run(&from.netns, *ip)?
                    .complete()
                    .with_context(|| format!("{inside} bytes, whole"))?;
                // The first ping and the first answer may be lost to path MTU discovery; then both ends fragment. One
                // after the other: of answers sent at once, all are on their way before the first is refused.
                let spaced = Ping { interval: wait::patient(SPACE), ..of_size(mtu, false) };
                let answers = spaced.run(&from.netns, *ip)?;
                ensure!(answers.received >= answers.sent - 2, "{mtu} bytes to {ip}: {answers}");
                let bytes = 20 << 20;
                let time = tcp::transfer(&to.netns, *ip, &from.netns, bytes, Duration::from_secs(5))?;
                println!("underlay {mtu}: {} MiB over TCP to {ip} in {time:?}", bytes >> 20);
            }
            let report = mesh.sealed()?;
            ensure!(report.fragments == 0, "{} fragments on the underlay", report.fragments);
            Ok(())
        })?;
    }
    Ok(())
}

/// The first days of a rollout: one node has Warren, the other does not yet.
pub fn permissive() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let (here, there) = (mesh.pod(1, 1), mesh.pod(2, 1));
        let node = mesh.node(1);
        let permissive = WarrendOptions { enforcement: Enforcement::Permissive, ..WarrendOptions::default() };
        node.start_warrend(&permissive)?;
        wait::until("warrend", Duration::from_secs(5), || node.ready())?;
        talk(here, there).context("permissive")?;
        let counted = node.status()?.guard;
        // Three pings and three answers in each family.
        ensure!((counted.out_pod, counted.in_pod) == (6, 6), "counted {counted:?}");

        node.stop_warrend()?;
        node.start_warrend(&WarrendOptions::default())?;
        wait::until("strict enforcement", Duration::from_secs(5), || {
            let enforcement = node.status()?.enforcement;
            node.ready()?;
            ensure!(enforcement == Enforcement::Strict, "{enforcement:?}");
            Ok(())
        })?;
        mesh.capture.reset()?;
        no_talk(here, there).context("strict")?;
        mesh.silent()?;
        ensure!(mesh.node(1).status()?.guard.in_pod >= counted.in_pod, "the counters went back");
        Ok(())
    })
}
