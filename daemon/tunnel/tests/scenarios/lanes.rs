//! Several lanes.

use anyhow::{Result, ensure};
use warren_testkit::traffic::iperf::Iperf;

use super::site::{Family, INTERFACE, Program, Site};

const FOUR: Program = Program::Warren { lanes: 4 };
const STREAMS: usize = 4;
const SECONDS: u32 = 3;

pub fn four_against_go() -> Result<()> {
    run(Program::Go, "wireguard-go with 1")
}

pub fn four_against_four() -> Result<()> {
    run(FOUR, "4")
}

fn run(other: Program, name: &str) -> Result<()> {
    let site = Site::joined(FOUR, other, Family::V4)?;
    site.ping()?;
    let queues = site.left.netns.sh(&format!("ip -d link show {INTERFACE}"))?;
    ensure!(queues.contains("multi_queue numqueues 4"), "{queues}");
    let threads = std::fs::read_dir(format!("/proc/{}/task", site.left.warren_pid()?))?.count();
    ensure!(threads == 5, "{threads} threads");
    for (from, to) in [(&site.left, &site.right), (&site.right, &site.left)] {
        let address = to.inner()[0];
        let streams = (0..STREAMS)
            .map(|_| Iperf::start(&to.netns, address, &from.netns, SECONDS))
            .collect::<Result<Vec<_>>>()?;
        let mut sum = 0.0;
        for stream in streams {
            sum += stream.finish()?.gbits;
        }
        println!(
            "4 lanes and {name}, {STREAMS} streams, {} to {}: {sum:.2} Gbit/s",
            from.netns.name(),
            to.netns.name()
        );
    }
    // All of them share the one session that the peer knows of.
    ensure!(site.left.peer(&site.right)?.endpoint == Some(site.right.endpoint(Family::V4)));
    ensure!(site.right.peer(&site.left)?.endpoint == Some(site.left.endpoint(Family::V4)));
    Ok(())
}
