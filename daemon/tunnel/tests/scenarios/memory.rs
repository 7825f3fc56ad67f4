//! What a tunnel holds stays bounded, whoever is away, and whoever comes and goes.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand_core::{OsRng, RngCore};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;
use warren_tunnel::uapi::{AllowedIpChange, DeviceUpdate, PeerUpdate};
use zeroize::Zeroizing;

use super::lifecycle::rss_kib;
use super::site::{End, Family, INTERFACE, ONE, SOON, Site};

/// Peers that are away.
const PEERS: u16 = 200;
/// With so many peers, in KiB (issue 5).
const MOST_KIB: u64 = 64 << 10;

/// Peers come and go so often…
const CYCLES: usize = 300;
/// …and so many at once.
const AT_ONCE: u16 = 20;
/// Where memory is looked at first: the allocator has its size, all buffers were used.
const WARM: usize = 50;
/// How much it may grow from there: the allocator's slack. A leak of 1 KiB for each of 5,000 peers would show beyond.
const MAX_GROWTH_KIB: u64 = 3 << 10;

/// The inner address of a peer that nobody is.
fn inner(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 8, high, low)
}

/// A peer at a port of the other machine where nobody listens.
fn absent(site: &Site, number: u16) -> PeerUpdate {
    let mut peer = PeerUpdate::new([0; 32]);
    // No weak key is made of chance.
    OsRng.fill_bytes(&mut peer.public_key);
    peer.endpoint = Some(SocketAddr::new(site.right.underlay(Family::V4), 40_000 + number));
    peer.allowed_ips = vec![AllowedIpChange::add(std::net::IpAddr::from(inner(number)).into())];
    peer
}

fn dropped(end: &End, reason: &str) -> Result<u64> {
    end.get()?.dropped.get(reason).copied().with_context(|| format!("no counter {reason}"))
}

/// Packets for 200 peers that are away: their queues together have a limit.
pub fn peers_away() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    let left = &site.left;
    let peers = (0..PEERS).map(|number| absent(&site, number)).collect();
    left.set(&DeviceUpdate { peers, ..DeviceUpdate::default() })?;
    left.netns.ip(&format!("route add 10.8.0.0/16 dev {INTERFACE}"))?;
    let (pid, before) = (left.warren_pid()?, rss_kib(left.warren_pid()?)?);
    let sender = left.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    wait::until("more packets for them than may wait", 4 * SOON, || {
        for number in 0..PEERS {
            for _ in 0..64 {
                // The TUN's queue may be full.
                let _ = sender.send_to(&[7; 1372], (inner(number), 9));
            }
        }
        let all = 256 * u64::from(PEERS);
        let lost = dropped(left, "queues_full")? + dropped(left, "no_keys")?;
        ensure!(lost > all, "{lost} did not wait");
        Ok(())
    })?;
    let after = rss_kib(pid)?;
    println!("{PEERS} peers away: RSS {before} KiB, {after} KiB with all that waits");
    ensure!(dropped(left, "queues_full")? > 0, "there is no limit for all together");
    ensure!(after < MOST_KIB, "{after} KiB");
    site.ping().context("a peer that is there")
}

/// Peers come, shake hands, get another PSK and go, one by one and all at once.
pub fn come_and_go() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let Site { left, right } = &site;
    left.netns.ip(&format!("route add 10.8.0.0/16 dev {INTERFACE}"))?;
    let sender = left.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let pid = left.warren_pid()?;
    let mut before = None;
    for cycle in 0..CYCLES {
        if cycle == WARM {
            before = Some(held(pid)?);
        }
        let others: Vec<PeerUpdate> = (0..AT_ONCE).map(|number| absent(&site, number)).collect();
        let real = left.peer_update(right, Some(Family::V4));
        let mut peers = others.clone();
        peers.push(real.clone());
        left.set(&DeviceUpdate { replace_peers: cycle % 2 == 0, peers, ..DeviceUpdate::default() })?;
        for number in 0..AT_ONCE {
            sender.send_to(&[7; 1000], (inner(number), 9)).context("a packet that waits")?;
        }
        meet(left, right).with_context(|| format!("cycle {cycle}"))?;
        let psk = |key, byte| {
            let preshared_key = Some(Zeroizing::new([byte; 32]));
            PeerUpdate { preshared_key, ..PeerUpdate::new(key) }
        };
        let byte = (cycle % 2) as u8;
        right.set_peer(psk(left.public(), byte))?;
        left.set_peer(psk(right.public(), byte))?;
        meet(left, right).with_context(|| format!("cycle {cycle}, another PSK"))?;
        right.set_peer(psk(left.public(), 0))?;
        let gone = others.into_iter().chain([real]).map(|peer| PeerUpdate { remove: true, ..peer });
        left.set(&DeviceUpdate { peers: gone.collect(), ..DeviceUpdate::default() })?;
        ensure!(left.get()?.peers.is_empty());
    }
    let (before, after) = (before.context("too few cycles")?, held(pid)?);
    println!("{CYCLES} times {AT_ONCE} peers: (threads, descriptors, RSS in KiB) {before:?}, then {after:?}");
    ensure!((after.0, after.1) == (before.0, before.1), "threads or descriptors were left");
    ensure!(after.2 < before.2 + MAX_GROWTH_KIB, "memory grew from {} to {} KiB", before.2, after.2);
    Ok(())
}

/// The other end answers, as soon as it takes an initiation again (20 ms after the last one).
fn meet(left: &End, right: &End) -> Result<()> {
    std::thread::sleep(Duration::from_millis(25));
    let answers = Ping { count: 1, ..Ping::default() }.run(&left.netns, right.inner()[0])?;
    answers.complete()
}

/// Threads, descriptors and resident KiB of a process.
fn held(pid: u32) -> Result<(usize, usize, u64)> {
    let count =
        |what: &str| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
    Ok((count("task")?, count("fd")?, rss_kib(pid)?))
}
