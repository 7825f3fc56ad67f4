//! What is written and what reads back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use warren_core::{DeviceChange, PeerChange};
use warren_testkit::wait;

use crate::common::{End, INTERFACE, key, nets, peer};

pub fn round_trip() -> Result<()> {
    let end = End::new("round-trip")?;
    end.wireguard.create(INTERFACE)?;
    let many =
        ["10.244.7.0/24", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.9/32", "fd00:7::/64", "::/0", "fd00::1/128"];
    let change = DeviceChange {
        identity: true,
        listen_port: Some(4711),
        fwmark: Some(0x2000),
        peers: vec![
            peer(key(1), "192.0.2.1:51820", nets(&many)),
            peer(key(2), "[2001:db8::2]:51821", nets(&["10.244.2.0/24"])),
            PeerChange { keepalive: None, ..peer(key(3), "192.0.2.3:1", nets(&[])) },
        ],
    };
    for _ in 0..2 {
        end.configure(&change)?;
        let found = end.agree()?;
        ensure!(found.public_key == Some(end.identity.public()), "it has another key: {found:?}");
        ensure!((found.listen_port, found.fwmark, found.peers.len()) == (4711, 0x2000, 3), "{found:?}");
        ensure!(found.peers[&key(1)].allowed_ips == nets(&many), "{found:?}");
        ensure!(found.peers[&key(2)].endpoint == change.peers[1].endpoint, "{found:?}");
        ensure!((found.peers[&key(2)].keepalive, found.peers[&key(3)].keepalive) == (25, 0), "{found:?}");
        ensure!(found.peers.values().all(|peer| peer.since_handshake.is_none()), "{found:?}");
    }
    // All of it differently: some leave, move, change hands; one goes.
    end.configure(&DeviceChange {
        fwmark: Some(0),
        peers: vec![
            PeerChange { drop: nets(&["10.0.0.0/8", "::/0", "fd00:7::/64"]), ..PeerChange::new(key(1)) },
            PeerChange {
                add: nets(&["fd00:7::/64", "10.244.9.0/24"]),
                endpoint: Some("192.0.2.2:9".parse()?),
                ..PeerChange::new(key(2))
            },
            PeerChange { remove: true, ..PeerChange::new(key(3)) },
            PeerChange { remove: true, ..PeerChange::new(key(4)) },
            PeerChange {
                add: nets(&["10.1.0.0/16"]),
                drop: nets(&["10.2.0.0/16"]),
                ..PeerChange::new(key(5))
            },
        ],
        ..DeviceChange::default()
    })?;
    let found = end.agree()?;
    ensure!((found.listen_port, found.fwmark, found.peers.len()) == (4711, 0, 2), "{found:?}");
    let stays = nets(&["10.244.7.0/24", "0.0.0.0/0", "192.0.2.9/32", "fd00::1/128"]);
    ensure!(found.peers[&key(1)].allowed_ips == stays, "{found:?}");
    let has = nets(&["10.244.2.0/24", "fd00:7::/64", "10.244.9.0/24"]);
    ensure!(found.peers[&key(2)].allowed_ips == has, "{found:?}");
    ensure!(found.peers[&key(2)].endpoint == Some("192.0.2.2:9".parse()?), "{found:?}");
    end.configure(&DeviceChange::default())?;
    ensure!(end.agree()? == found, "a change of nothing changed something");
    Ok(())
}

pub fn foreign_changes() -> Result<()> {
    let end = End::with_device("changes", 4711)?;
    end.set_peers([peer(key(1), "192.0.2.1:51820", nets(&["10.244.1.0/24"]))])?;
    for words in [
        format!("peer {} allowed-ips 10.244.1.0/24,10.9.0.0/16", key(1)),
        format!("peer {} persistent-keepalive 3", key(1)),
        format!("peer {} endpoint 192.0.2.77:7", key(1)),
        format!("peer {} endpoint 192.0.2.8:8 allowed-ips 10.244.1.0/24", key(2)),
        "listen-port 4712".to_owned(),
        "fwmark 0x51".to_owned(),
        "private-key /dev/null".to_owned(),
        format!("peer {} remove", key(1)),
    ] {
        let before = end.agree()?;
        end.netns.sh(&format!("wg set {INTERFACE} {words}"))?;
        ensure!(end.agree()? != before, "{words} is not seen");
    }
    ensure!(end.observe()?.public_key.is_none(), "a key that is gone is seen");
    end.netns.ip(&format!("link delete {INTERFACE}"))?;
    ensure!(end.wireguard.observe(INTERFACE)?.is_none(), "a device that is gone is seen");
    end.wireguard.create(INTERFACE)?;
    ensure!(end.agree()?.peers.is_empty(), "a new device has peers");
    Ok(())
}

/// How many reads are to be interrupted, and how long that may take, [`wait::patient`]: with one in eight, ten times
/// less.
const ENOUGH: u64 = 5;
const LIMIT: Duration = Duration::from_secs(10);

/// A device whose peers take several messages to read, while somebody changes it: until reads were interrupted by that for
/// certain.
pub fn interrupted() -> Result<()> {
    let end = End::with_device("interrupted", 4711)?;
    let peers = (0..300).map(|number| {
        let nets =
            (0..10).map(|net| format!("10.{}.{}.{net}/32", number / 256, number % 256)).collect::<Vec<_>>();
        peer(
            key(number),
            "192.0.2.1:51820",
            crate::common::nets(&nets.iter().map(String::as_str).collect::<Vec<_>>()),
        )
    });
    end.set_peers(peers)?;
    let start = Instant::now();
    end.observe()?;
    // So that one read in eight is met by a change, and none as often as it is tried.
    let pause = 8 * start.elapsed();
    let interrupted = || end.wireguard.counts().interrupted;
    ensure!(interrupted() == 0, "a read was interrupted by nobody");
    let over = AtomicBool::new(false);
    let change = || -> Result<u32> {
        let mut changes = 0;
        while !over.load(Ordering::Relaxed) {
            let verb = if changes % 2 == 0 { "allowed-ips 10.9.9.9/32" } else { "remove" };
            end.netns.sh(&format!("wg set {INTERFACE} peer {} {verb}", key(1000)))?;
            changes += 1;
            std::thread::sleep(pause);
        }
        Ok(changes)
    };
    let read = || -> Result<u32> {
        let (deadline, mut reads) = (Instant::now() + wait::patient(LIMIT), 0);
        while interrupted() < ENOUGH {
            ensure!(Instant::now() < deadline, "{} of {reads} reads were interrupted", interrupted());
            let found = end.observe()?;
            let ours = found.peers.iter().filter(|(peer, _)| **peer != key(1000));
            let (peers, nets) =
                ours.fold((0, 0), |(peers, nets), (_, peer)| (peers + 1, nets + peer.allowed_ips.len()));
            ensure!((peers, nets) == (300, 3000), "{peers} peers with {nets} networks were read");
            reads += 1;
        }
        Ok(reads)
    };
    let (reads, changes) = std::thread::scope(|scope| {
        let changing = scope.spawn(change);
        let reads = read();
        over.store(true, Ordering::Relaxed);
        let changes = changing.join().expect("the other thread does not panic");
        anyhow::Ok((reads?, changes?))
    })?;
    println!("{reads} reads, each whole, of which {} were interrupted by {changes} changes", interrupted());
    Ok(())
}
