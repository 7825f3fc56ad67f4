//! Several lanes.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_testkit::traffic::iperf::Iperf;
use warren_tunnel::uapi::PeerUpdate;

use super::site::{Family, INTERFACE, ONE, Program, Site};

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
    let site = if other == FOUR { four_lanes_each() } else { Site::joined(FOUR, other, Family::V4) }?;
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
    // Whatever the other lanes do, the first one's endpoint is the peer's.
    ensure!(site.left.peer(&site.right)?.endpoint == Some(site.right.endpoint(Family::V4)));
    ensure!(site.right.peer(&site.left)?.endpoint == Some(site.left.endpoint(Family::V4)));
    Ok(())
}

/// Flows whose order is watched: half of them over IPv4, half over IPv6.
const FLOWS: usize = 24;
/// Where those of either begin. Of such ports the steering spreads 12 over all four lanes.
const PORTS: [u16; 2] = [7000, 40_000];

/// Sequence-numbered UDP in many flows of IPv4 and IPv6 over four lanes, none of whose packets overtakes another; the other end answers now
/// and then, on the same lane.
pub fn order() -> Result<()> {
    let seconds = match std::env::var("WARREN_ORDER_SECONDS") {
        Ok(seconds) => seconds.parse().context("WARREN_ORDER_SECONDS is no number")?,
        Err(_) => 60,
    };
    let site = four_lanes_each()?;
    check_steering(&site)?;
    let by_lane = in_order(&site, "4 and 4", seconds)?;
    drop(site);
    ensure!(by_lane.iter().all(|count| *count > 100), "not all lanes are used: {by_lane:?}");
    // Four queues share the peer's one lane, on which all answers come.
    let by_lane = in_order(&Site::joined(FOUR, ONE, Family::V4)?, "4 and 1", seconds.div_ceil(4))?;
    ensure!(by_lane[1..].iter().all(|count| *count == 0), "the peer has one lane: {by_lane:?}");
    Ok(())
}

/// Who may load eBPF programs steers by one: else the order below would be luck.
fn check_steering(site: &Site) -> Result<()> {
    let may_steer = may_load_programs()?;
    for end in [&site.left, &site.right] {
        let refused = end.get()?.fallbacks.get("steering_refused").copied();
        println!("steering by eBPF: allowed {may_steer}, refused {refused:?}");
        ensure!(refused.is_some() && (refused == Some(0) || !may_steer), "the program was not loaded");
    }
    Ok(())
}

/// Whether CAP_BPF or CAP_SYS_ADMIN are there, and count: in a user namespace they do not.
fn may_load_programs() -> Result<bool> {
    const SYS_ADMIN: u64 = 1 << 21;
    const BPF: u64 = 1 << 39;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    let effective = u64::from_str_radix(effective.trim(), 16)?;
    let users = std::fs::read_to_string("/proc/self/uid_map")?;
    let all_users = users.split_whitespace().eq(["0", "0", "4294967295"]);
    Ok(all_users && effective & (SYS_ADMIN | BPF) != 0)
}

/// Returns how many datagrams came by each lane.
fn in_order(site: &Site, name: &str, seconds: u64) -> Result<[u64; 4]> {
    site.ping()?;
    site.right.netns.nft(
        "table inet lanes {\n\
           counter l0 { }\ncounter l1 { }\ncounter l2 { }\ncounter l3 { }\n\
           chain c { type filter hook input priority 0;\n\
             udp dport 51802 counter name l0\nudp dport 51803 counter name l1\n\
             udp dport 51804 counter name l2\nudp dport 51805 counter name l3\n\
           }\n\
         }",
    )?;
    // Takes IPv4, too.
    let receiver = site.right.netns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 5001)))??;
    let senders = site.left.netns.run(|| {
        let sender = |flow: usize| -> Result<Sender> {
            let (family, number) = (flow % 2, flow / 2);
            let socket = UdpSocket::bind((site.left.inner()[family], PORTS[family] + number as u16))?;
            socket.set_nonblocking(true)?;
            Ok((socket, SocketAddr::new(site.right.inner()[family], 5001)))
        };
        (0..FLOWS).map(sender).collect::<Result<Vec<_>>>()
    })??;
    let stop = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| watch_order(&receiver, &stop));
        let sent = send_numbered(&senders, Duration::from_secs(seconds));
        // What is under way.
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        Ok::<_, anyhow::Error>((sent?, receiving.join().expect("the receiver does not panic")?))
    })?;
    let mut by_lane = [0; 4];
    for (lane, count) in by_lane.iter_mut().enumerate() {
        *count = site.right.counter("lanes", &format!("l{lane}"))?;
    }
    // Lanes that share a session reorder its counters among each other.
    let late = site.right.get()?.dropped.get("replayed_data").copied().unwrap_or_default();
    let [v4, v6] = [0, 1].map(|family| received.iter().skip(family).step_by(2).sum::<u64>());
    println!(
        "lanes {name}, {FLOWS} flows, {seconds} s: of {sent} in order {v4} of IPv4 and {v6} of IPv6, {late} behind the \
         replay window; by lane {by_lane:?}"
    );
    ensure!(v4.min(v6) > sent / 4, "most were lost");
    Ok(by_lane)
}

fn four_lanes_each() -> Result<Site> {
    let site = Site::joined(FOUR, FOUR, Family::V4)?;
    for (end, other) in [(&site.left, &site.right), (&site.right, &site.left)] {
        end.set_peer(PeerUpdate { lanes: Some(4), ..PeerUpdate::new(other.public()) })?;
        ensure!(end.peer(other)?.lanes == 4);
        // Other tools do not mind what they do not know.
        end.netns.sh(&format!("wg show {INTERFACE} dump"))?;
    }
    Ok(site)
}

/// A flow's socket, and where it sends to.
type Sender = (UdpSocket, SocketAddr);

/// Sends 16 bytes each: flow and number. Returns how many.
fn send_numbered(senders: &[Sender], time: Duration) -> Result<u64> {
    let (start, mut number) = (Instant::now(), 0u64);
    let mut answer = [0; 16];
    while start.elapsed() < time {
        for (flow, (sender, target)) in senders.iter().enumerate() {
            // In bursts, which wait in the queues.
            for step in 0..8 {
                let bytes = [(flow as u64).to_be_bytes(), (number + step).to_be_bytes()].concat();
                sender.send_to(&bytes, *target).context("sending")?;
            }
            while sender.recv_from(&mut answer).is_ok() {}
        }
        number += 8;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(number * senders.len() as u64)
}

/// Returns how many came of each flow.
fn watch_order(receiver: &UdpSocket, stop: &AtomicBool) -> Result<[u64; FLOWS]> {
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (mut next, mut counts, mut bytes) = ([0; FLOWS], [0; FLOWS], [0; 64]);
    while !stop.load(Ordering::Relaxed) {
        let Ok((16, from)) = receiver.recv_from(&mut bytes) else { continue };
        let [flow, number] =
            [0, 8].map(|at| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes")));
        let flow = flow as usize;
        let next = next.get_mut(flow).context("an unknown flow")?;
        ensure!(number >= *next, "flow {flow}: {number} came after {}", *next - 1);
        *next = number + 1;
        counts[flow] += 1;
        if number % 64 == 63 {
            receiver.send_to(&bytes[..16], from).context("answering")?;
        }
    }
    Ok(counts)
}
