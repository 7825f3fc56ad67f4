//! What the fake itself costs: it shares the machine with the program whose cost is measured.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use warren_testkit::apiserver::fake::Verb;

use crate::cluster::Cluster;
use crate::watching::next;

const NODES: u16 = 5000;

pub fn five_thousand_nodes() -> Result<()> {
    let before = resident()?;
    let start = Instant::now();
    let cluster = Cluster::new(NODES)?;
    let api = &cluster.api;
    println!("{NODES} nodes held after {:?}, in {} MiB", start.elapsed(), (resident()? - before) >> 20);
    ensure!(resident()? - before < 150 << 20, "5,000 nodes are not cheap to hold");
    cluster.nodes(|nodes| async move {
        let start = Instant::now();
        let cpu = cpu_of_server()?;
        let mut params = ListParams::default().limit(500);
        let version = loop {
            let page = nodes.list_metadata(&params).await?;
            match page.metadata.continue_ {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.context("a list without version")?,
            }
        };
        println!(
            "metadata of all listed in {:?}, {:?} of it the server's",
            start.elapsed(),
            cpu_of_server()? - cpu
        );

        let mut events = nodes.watch_metadata(&WatchParams::default(), &version).await?.boxed();
        api.set_heartbeats(Some(Duration::from_secs(10)));
        let (start, cpu, bytes) = (Instant::now(), cpu_of_server()?, api.count(Verb::WatchMetadata).bytes);
        let mut seen = 0;
        while start.elapsed() < Duration::from_secs(6) {
            match next(&mut events).await? {
                WatchEvent::Modified(_) => seen += 1,
                other => bail!("{other:?}"),
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let share = (cpu_of_server()? - cpu).as_secs_f64() / seconds;
        let rate = f64::from(seen) / seconds;
        let kib = (api.count(Verb::WatchMetadata).bytes - bytes) as f64 / seconds / 1024.0;
        println!("{rate:.0} heartbeats/s, {kib:.0} KiB/s to one watch: {:.1} % of a core", share * 100.0);
        ensure!((450.0..550.0).contains(&rate), "{rate:.0} heartbeats/s");
        ensure!(share < 0.15, "the fake takes {:.1} % of a core", share * 100.0);
        Ok(())
    })
}

/// CPU time of the server's thread so far.
fn cpu_of_server() -> Result<Duration> {
    for entry in fs::read_dir("/proc/self/task")? {
        let directory = entry?.path();
        if fs::read_to_string(directory.join("comm"))?.trim_end() == "apiserver" {
            let text = fs::read_to_string(directory.join("schedstat"))?;
            let running = text.split(' ').next().context("an empty schedstat")?;
            return Ok(Duration::from_nanos(running.parse()?));
        }
    }
    bail!("no thread of the server's")
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<usize> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse::<usize>()? << 10)
}
