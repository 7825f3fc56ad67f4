//! warrend comes and goes; the tunnel does not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use warren_testkit::lab::WarrendOptions;
use warren_testkit::traffic::iperf::Iperf;

use crate::common::{in_mesh, two_nodes};

/// Under a flood of pings and an iperf3, warrend restarts by SIGTERM and by SIGKILL on both nodes: no ping
/// is lost, iperf3 does not stall, and the tunnel's processes are those of before.
pub fn nothing_is_lost() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        let tunnels = [mesh.node(1).tunnel_pid()?, mesh.node(2).tunnel_pid()?];
        let keys = [mesh.node(1).status()?.public_key, mesh.node(2).status()?.public_key];
        let iperf = Iperf::start(&mesh.pod(2, 1).netns, mesh.pod(2, 1).ipv4(), &mesh.pod(1, 1).netns, 8)?;
        let mut traffic = mesh.traffic()?;
        let mut restarts = 0;
        for round in 0..2 {
            for node in &mesh.lab.nodes {
                let status = if round == 0 { node.stop_warrend()? } else { node.kill_warrend()? };
                ensure!(status.success() == (round == 0), "warrend ended with {status}");
                node.start_warrend(&WarrendOptions::default())?;
                mesh.await_up()?;
                traffic.await_answers(Duration::from_secs(1))?;
                restarts += 1;
            }
        }
        let damage = traffic.stop()?;
        let throughput = iperf.finish()?;
        damage.none()?;
        ensure!(
            tunnels == [mesh.node(1).tunnel_pid()?, mesh.node(2).tunnel_pid()?],
            "a tunnel was restarted"
        );
        ensure!(
            keys == [mesh.node(1).status()?.public_key, mesh.node(2).status()?.public_key],
            "a key changed"
        );
        let stalls = throughput.intervals.iter().filter(|bytes| **bytes == 0).count();
        ensure!(
            stalls == 0,
            "iperf3 stalled in {stalls} of {} tenths of a second",
            throughput.intervals.len()
        );
        let report = mesh.sealed()?;
        println!(
            "{restarts} restarts: 0 of {} pings lost, iperf3 {:.2} Gbit/s without a stall, {} WireGuard packets",
            damage.sent, throughput.gbits, report.wireguard
        );
        Ok(())
    })
}
