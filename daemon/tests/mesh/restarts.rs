//! warrend comes and goes; the tunnel does not notice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use warren_testkit::lab::WarrendOptions;
use warren_testkit::traffic::flows::Flows;
use warren_testkit::traffic::iperf::Iperf;
use warren_testkit::wait;

use crate::common::{Mesh, in_mesh, two_nodes};

/// Under a flood of pings and steady datagrams of many flows, warrend restarts by SIGTERM and by SIGKILL on both nodes:
/// no packet is lost, and the tunnel's processes and keys are those of before.
pub fn nothing_is_lost() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        let identity = || {
            let of =
                |number| anyhow::Ok((mesh.node(number).tunnel()?, mesh.node(number).status()?.public_key));
            anyhow::Ok([of(1)?, of(2)?])
        };
        let before = identity()?;
        let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
        let traffic = mesh.traffic()?;
        let flows = Flows::start(&from.netns, &to.netns, to.ipv4(), 25_000, 16)?;
        let usual = restarts(mesh)?;
        let steady = flows.stop()?;
        let damage = traffic.stop()?;
        damage.none()?;
        ensure!(steady.lost == 0, "{} of {} datagrams were lost", steady.lost, steady.sent);

        // As fast as it goes, queues overflow with or without restarts; but it goes on.
        let seconds = 2 + 2 * usual.as_secs() as u32;
        let iperf = Iperf::start(&to.netns, to.ipv4(), &from.netns, seconds)?;
        let took = restarts(mesh)?;
        ensure!(took.as_secs() < seconds.into(), "{took:?} of restarts, and TCP for {seconds} s of them");
        let fast = iperf.finish()?;
        // A segment that is lost twice may cost an interval, where there is little to compute with; a cut costs more.
        let empty =
            fast.intervals.chunk_by(|one, next| (*one == 0) == (*next == 0)).filter(|run| run[0] == 0);
        let stall = empty.map(<[u64]>::len).max().unwrap_or_default();
        ensure!(stall < 2, "TCP stalled for {stall} of {} intervals", fast.intervals.len());
        ensure!(identity()? == before, "a tunnel was restarted, or a key changed: {before:?}");
        let report = mesh.sealed()?;
        println!(
            "4 restarts: 0 of {} pings and 0 of {} datagrams lost; 4 more: TCP at {:.2} Gbit/s without a \
             stall; {} WireGuard packets",
            damage.sent, steady.sent, fast.gbits, report.wireguard
        );
        Ok(())
    })
}

/// Under a flood of pings, both nodes get a warrend of another version: what it finds is not what it would have written
/// (a guard with another seal, without the clamp, with a rule and a chain more), and it wants other priorities. No packet
/// is lost or in the clear, the tunnels stay, and of what was there before nothing does.
pub fn upgrades() -> Result<()> {
    const OLD: &[&str] = &[
        "nft flush chain inet warren mss",
        "nft add rule inet warren out ip daddr 203.0.113.7 counter",
        "nft add chain inet warren old { type filter hook forward priority 7 ; }",
    ];
    const NEW: [&str; 3] = ["priority -310", "priority 310", "priority -140"];
    in_mesh(two_nodes(), |mesh| {
        let tunnels = || anyhow::Ok([mesh.node(1).tunnel()?, mesh.node(2).tunnel()?]);
        let before = tunnels()?;
        let traffic = mesh.traffic()?;
        for (node, gently) in mesh.lab.nodes.iter().zip([true, false]) {
            if gently {
                node.stop_warrend()?
            } else {
                node.kill_warrend()?
            };
            let guard = node.netns.sh("nft list table inet warren")?;
            let seal = guard.split_whitespace().find(|word| word.starts_with("seal_"));
            let seal = seal.with_context(|| format!("the guard has no seal: {guard}"))?;
            let other = format!("seal_{:016x}_{:016x}", 7, 7);
            node.netns.sh(&format!("nft rename chain inet warren {seal} {other}"))?;
            OLD.iter().try_for_each(|command| node.netns.sh(command).map(drop))?;
            // Nobody is there to mind it: that is how the new version finds it.
            std::thread::sleep(Duration::from_millis(300));
            let extra = vec!["--nft-priorities".into(), "-310,310,-140".into()];
            node.start_warrend(&WarrendOptions { extra, ..WarrendOptions::default() })?;
            wait::until("the new guard", Duration::from_secs(10), || {
                node.ready()?;
                let guard = node.netns.sh("nft -y list table inet warren")?;
                ensure!(NEW.iter().all(|priority| guard.contains(priority)), "it is {guard}");
                let old = [&other, "203.0.113.7", "chain old"];
                ensure!(!old.iter().any(|old| guard.contains(old)), "something of the old is in {guard}");
                ensure!(guard.contains("maxseg size set"), "there is no clamp in {guard}");
                Ok(())
            })?;
            mesh.await_up()?;
            traffic.run_for(Duration::from_millis(500));
        }
        let damage = traffic.stop()?;
        damage.none().context("over two upgrades")?;
        ensure!(tunnels()? == before, "a tunnel was restarted: {before:?}");
        let report = mesh.sealed()?;
        println!(
            "2 upgrades: 0 of {} pings lost, {} WireGuard packets, 0 in the clear",
            damage.sent, report.wireguard
        );
        Ok(())
    })
}

/// Restarts warrend twice on each node; returns how long that took.
fn restarts(mesh: &Mesh) -> Result<Duration> {
    let start = Instant::now();
    for gently in [true, false] {
        for node in &mesh.lab.nodes {
            let status = if gently { node.stop_warrend()? } else { node.kill_warrend()? };
            ensure!(status.success() == gently, "warrend ended with {status}");
            node.start_warrend(&WarrendOptions::default())?;
            mesh.await_up()?;
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(start.elapsed())
}
