//! Real traffic between the pods.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::{Lab, Node, Pod};
use warren_testkit::traffic::iperf::{self, Throughput};
use warren_testkit::traffic::ping::Ping;

use crate::progress::Progress;

/// So many pings run at the same time. They mostly wait; more would make two cores fork all the time.
const PARALLEL: usize = 24;

/// What became of many pings.
#[derive(Debug, Default)]
pub struct Pings {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo requests answered.
    pub answered: u32,
}

/// What was measured from one node to the next: one value for each address family of the pods, IPv4 first.
pub type Link = Vec<Throughput>;

/// Each node with the next one, and the last with the first.
pub fn ring(lab: &Lab) -> impl Iterator<Item = (&Node, &Node)> {
    lab.nodes.iter().zip(lab.nodes.iter().cycle().skip(1))
}

/// Every pod pings every pod of every other node.
pub fn ping_all(lab: &Lab, progress: &Progress) -> Result<Pings> {
    let pairs: Vec<_> = lab
        .pods()
        .flat_map(|from| lab.pods().filter(|to| to.node != from.node).map(move |to| (from, to)))
        .collect();
    let pings = ping(&pairs, "ping", progress)?;
    let pairs = pairs.len();
    progress.done(
        "ping",
        &format!(
            "{} of {} answered: {pairs} pairs of pods on different nodes, IPv4 and IPv6",
            pings.answered, pings.sent
        ),
    );
    Ok(pings)
}

/// Pings from the first to the second pod of each pair, over all address families, many at a time. Fails
/// when one is not answered.
pub fn ping(pairs: &[(&Pod, &Pod)], step: &str, progress: &Progress) -> Result<Pings> {
    let ping = Ping {
        count: 3,
        interval: Duration::from_millis(50),
        patience: Duration::from_secs(2),
        ..Ping::default()
    };
    let jobs: Vec<_> =
        pairs.iter().flat_map(|(from, to)| to.ips.iter().map(move |ip| (from, to, *ip))).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(jobs.len()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((from, to, ip)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = ping.run(&from.netns, *ip);
                    let mut results = results.lock().expect("nobody panics with it");
                    results.push((format!("{} to {} ({ip})", from.name, to.name), result));
                    progress.update(step, &format!("{} of {}", results.len(), jobs.len()));
                }
            });
        }
    });
    let mut total = Pings::default();
    let mut failed = Vec::new();
    for (what, result) in results.into_inner().expect("nobody panics with it") {
        let answers = result?;
        total.sent += answers.sent;
        total.answered += answers.received;
        if !answers.missing.is_empty() {
            failed.push(format!("{what}: {answers}"));
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of {} pings lost answers, among them {}",
        failed.len(),
        jobs.len(),
        failed[0]
    );
    Ok(total)
}

/// iperf3 from the first pod of each node to that of the next, one after the other.
///
/// A ring and not all pairs: it uses every node as sender and as receiver, in a time that grows with the
/// nodes and not with their square.
pub fn measure_ring(lab: &Lab, seconds: u32, progress: &Progress) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for (from, to) in ring(lab) {
        let (client, server) = (&from.pods[0], &to.pods[0]);
        let mut throughput = Vec::new();
        for ip in &server.ips {
            progress.update("iperf3", &format!("{} to {} over {ip}, {seconds} s", client.name, server.name));
            throughput.push(
                iperf::measure(&server.netns, *ip, &client.netns, seconds)
                    .with_context(|| format!("measuring from {} to {}", from.name, to.name))?,
            );
        }
        links.push(throughput);
    }
    progress.done(
        "iperf3",
        &format!(
            "{seconds} s of TCP from each node to the next around a ring, IPv4, then IPv6, one at a time"
        ),
    );
    Ok(links)
}
