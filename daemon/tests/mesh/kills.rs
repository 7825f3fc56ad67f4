//! SIGKILL in mid-traffic.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use warren_testkit::lab::{Plan, WarrendOptions};
use warren_testkit::wait;

use crate::common::{REPAIR, in_mesh, no_talk, none_talk, two_nodes};

/// The tunnel goes on alone: nothing is in the clear, and nothing is lost.
pub fn warrend() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        let mut traffic = mesh.traffic()?;
        for node in &mesh.lab.nodes {
            node.kill_warrend()?;
        }
        traffic.run_for(Duration::from_secs(2));
        traffic.await_answers(Duration::from_secs(1))?;
        let damage = traffic.stop()?;
        damage.none()?;
        let report = mesh.sealed()?;
        println!("{} pings without warrend, none lost, {} WireGuard packets", damage.sent, report.wireguard);
        Ok(())
    })
}

/// Packets are dropped until warrend has started it anew.
pub fn tunnel() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        for victim in [1, 2] {
            let traffic = mesh.traffic()?;
            let node = mesh.node(victim);
            let before = node.tunnel()?;
            node.kill_tunnel()?;
            let damage = traffic.stop()?;
            let after = node.tunnel()?;
            ensure!(before != after, "the tunnel was not killed: it is still {before:?}");
            ensure!(damage.lost > 0, "no ping was lost: did they go through the tunnel at all?");
            ensure!(damage.outage <= wait::patient(REPAIR), "the outage lasted {:?}", damage.outage);
            mesh.sealed()?;
            println!("{}: talks again after {:?}, {} pings dropped", node.name, damage.outage, damage.lost);
        }
        Ok(())
    })
}

/// With nobody left to act, what stands in the kernel must do: packets are dropped, for as long as it takes.
pub fn both() -> Result<()> {
    in_mesh(Plan::default(), |mesh| {
        let traffic = mesh.traffic()?;
        let node = mesh.node(1);
        node.kill_warrend()?;
        node.kill_tunnel()?;
        traffic.run_for(Duration::from_secs(2));
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        no_talk(mesh.pod(2, 1), mesh.pod(1, 1))?;
        let start = Instant::now();
        mesh.node(1).start_warrend(&WarrendOptions::default())?;
        let damage = traffic.stop()?;
        let back = start.elapsed();
        ensure!(damage.lost > 0, "no ping was lost: did they go through the tunnel at all?");
        mesh.sealed()?;
        println!("{} pings dropped while both were dead; back after {back:?}", damage.lost);
        Ok(())
    })
}

/// Two layers keep clear text in: the guard, and the routes. Each must do alone.
pub fn each_layer_holds() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        for node in &mesh.lab.nodes {
            node.kill_warrend()?;
        }
        for (what, breaks) in [
            ("routes without guard", &["nft delete table inet warren"][..]),
            (
                "guard without routes",
                &[
                    "ip -4 route flush table 5180",
                    "ip -6 route flush table 5180",
                    "ip -4 rule del priority 5180",
                    "ip -6 rule del priority 5180",
                ],
            ),
        ] {
            // The layer that the last turn took away is put back.
            for node in &mesh.lab.nodes {
                node.start_warrend(&WarrendOptions::default())?;
            }
            mesh.await_up()?;
            mesh.silent()?;
            for node in &mesh.lab.nodes {
                node.kill_warrend()?;
                node.kill_tunnel()?;
                // Its routes go with the interface; flushing them at that moment would fail.
                wait::until("the end of the interface", Duration::from_secs(5), || {
                    ensure!(node.netns.sh("ip link show warren-a0").is_err(), "it is still there");
                    Ok(())
                })?;
                for command in breaks {
                    node.netns.sh(command)?;
                }
            }
            none_talk(&[(mesh.pod(1, 1), mesh.pod(2, 1)), (mesh.pod(2, 2), mesh.pod(1, 2))])?;
            mesh.silent()?;
            println!("{what}: nothing passed");
        }
        // The control: without both, it does. So it was they that held.
        for node in &mesh.lab.nodes {
            node.netns.sh("nft delete table inet warren")?;
        }
        crate::common::talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        ensure!(mesh.capture.report()?.clear > 0, "the capture is blind");
        Ok(())
    })
}
