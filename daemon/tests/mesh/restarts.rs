//! warrend comes and goes; the tunnel does not notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use warren_testkit::lab::WarrendOptions;
use warren_testkit::traffic::iperf::{Iperf, Load, Throughput};
use warren_testkit::wait;

use crate::common::{Mesh, in_mesh, two_nodes};

/// Under a flood of pings and a steady iperf3, warrend restarts by SIGTERM and by SIGKILL on both nodes: no
/// packet is lost, and the tunnel's processes and keys are those of before.
pub fn nothing_is_lost() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        let identity = || {
            let of =
                |number| anyhow::Ok((mesh.node(number).tunnel()?, mesh.node(number).status()?.public_key));
            anyhow::Ok([of(1)?, of(2)?])
        };
        let before = identity()?;
        let traffic = mesh.traffic()?;
        let steady = restarts_under(mesh, Load::Udp(5))?;
        let damage = traffic.stop()?;
        damage.none()?;
        ensure!(
            steady.packets > 0 && steady.lost == 0,
            "{} of {} datagrams were lost",
            steady.lost,
            steady.packets
        );

        // As fast as it goes, queues overflow with or without restarts; but it goes on.
        let fast = restarts_under(mesh, Load::Tcp)?;
        let stalls = fast.intervals.iter().filter(|bytes| **bytes == 0).count();
        ensure!(stalls == 0, "TCP stalled in {stalls} of {} intervals", fast.intervals.len());
        ensure!(identity()? == before, "a tunnel was restarted, or a key changed: {before:?}");
        let report = mesh.sealed()?;
        println!(
            "4 restarts: 0 of {} pings and 0 of {} datagrams lost; 4 more: TCP at {:.2} Gbit/s without a \
             stall; {} WireGuard packets",
            damage.sent, steady.packets, fast.gbits, report.wireguard
        );
        Ok(())
    })
}

/// Restarts warrend twice on each node under an iperf3 that lasts longer.
fn restarts_under(mesh: &Mesh, load: Load) -> Result<Throughput> {
    let (from, to) = (mesh.pod(1, 1), mesh.pod(2, 1));
    let seconds = wait::patient(Duration::from_secs(5)).as_secs() as u32;
    let iperf = Iperf::start_load(&to.netns, to.ipv4(), &from.netns, seconds, load)?;
    for gently in [true, false] {
        for node in &mesh.lab.nodes {
            let status = if gently { node.stop_warrend()? } else { node.kill_warrend()? };
            ensure!(status.success() == gently, "warrend ended with {status}");
            node.start_warrend(&WarrendOptions::default())?;
            mesh.await_up()?;
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    iperf.finish()
}
