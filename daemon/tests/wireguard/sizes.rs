//! Many peers, and much of one.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_core::{DeviceChange, ObservedPeer, PeerChange};

use crate::common::{End, INTERFACE, key, nets, peer};

pub fn five_hundred_peers() -> Result<()> {
    let end = End::new("many")?;
    let peers = (0..500).map(|number| {
        let (high, low) = (number / 250, number % 250);
        let nets = nets(&[
            &format!("10.{high}.{low}.0/24"),
            &format!("fd00:{number:x}::/64"),
            &format!("192.168.{high}.{low}/32"),
            &format!("fd01::{number:x}/128"),
        ]);
        peer(key(number), &format!("192.168.{high}.{low}:51820"), nets)
    });
    let change = DeviceChange {
        identity: true,
        listen_port: Some(51820),
        fwmark: Some(0x2000),
        peers: peers.collect(),
    };
    let start = Instant::now();
    end.wireguard.create(INTERFACE)?;
    end.configure(&change)?;
    let configured = start.elapsed();
    let found = end.observe()?;
    let read = start.elapsed() - configured;
    ensure!(found == end.agree()? && found.peers.len() == 500, "{} peers", found.peers.len());
    let networks: usize = found.peers.values().map(|peer| peer.allowed_ips.len()).sum();
    ensure!(networks == 2000, "{networks} allowed IPs");
    let one = PeerChange { add: nets(&["10.9.9.0/24"]), ..PeerChange::new(key(7)) };
    let one = single(&end, one, |peer| peer.allowed_ips.extend(nets(&["10.9.9.0/24"])))?;
    // Once it is known how a network leaves a peer in this kernel, which is asked once.
    end.set_peers([PeerChange { drop: nets(&["10.9.9.0/24"]), ..PeerChange::new(key(7)) }])?;
    let (endpoint, keepalive) = (Some("192.0.2.7:7".parse()?), Some(7));
    let (add, drop) = (nets(&["10.9.8.0/24", "fd02::/64"]), nets(&["10.0.7.0/24", "fd01::7/128"]));
    let all = PeerChange { endpoint, keepalive, add, drop, ..PeerChange::new(key(7)) };
    single(&end, all, |peer| {
        (peer.endpoint, peer.keepalive) = (endpoint, 7);
        peer.allowed_ips = nets(&["10.9.8.0/24", "fd02::/64", "fd00:7::/64", "192.168.0.7/32"]);
    })?;
    let start = Instant::now();
    end.set_peers(found.peers.keys().map(|key| PeerChange { remove: true, ..PeerChange::new(*key) }))?;
    let removed = start.elapsed();
    ensure!(end.agree()?.peers.is_empty(), "peers are left");
    println!(
        "500 peers: configured from nothing in {configured:.1?}, read in {read:.1?}, one changed in {one:.1?}, \
         all removed in {removed:.1?}"
    );
    ensure!(configured < Duration::from_secs(2), "configuring took {configured:?}");
    Ok(())
}

/// Changes the peer 7 by one message, after which it reads back as changed by `expected`, and the others as before;
/// returns how long that took.
fn single(end: &End, change: PeerChange, expected: impl FnOnce(&mut ObservedPeer)) -> Result<Duration> {
    let mut device = end.agree()?;
    expected(device.peers.get_mut(&key(7)).context("the peer is not there")?);
    let before = end.wireguard.counts().sent;
    let start = Instant::now();
    end.set_peers([change])?;
    let took = start.elapsed();
    let messages = end.wireguard.counts().sent - before;
    ensure!(messages == 1, "one change took {messages} messages");
    let found = end.agree()?;
    ensure!(found == device, "it reads back as {:?}, not {:?}", found.peers[&key(7)], device.peers[&key(7)]);
    Ok(took)
}

pub fn one_large_peer() -> Result<()> {
    let end = End::with_device("large", 51820)?;
    let v4 = |n: u32| IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + n), 32).expect("a prefix"));
    let v6 =
        |n: u32| IpNet::V6(Ipv6Net::new(Ipv6Addr::from(0xfd << 120 | u128::from(n)), 128).expect("a prefix"));
    let all: BTreeSet<IpNet> = (0..30_000).map(v4).chain((0..10_000).map(v6)).collect();
    let half: BTreeSet<IpNet> = all.iter().step_by(2).copied().collect();
    let rest: BTreeSet<IpNet> = &all - &half;
    let timed = |what: &str, peers: Vec<PeerChange>, expected: [&BTreeSet<IpNet>; 2]| -> Result<()> {
        let start = Instant::now();
        end.set_peers(peers)?;
        let changed = start.elapsed();
        let found = end.observe()?;
        println!("{what}: {changed:.0?}, read in {:.0?}", start.elapsed() - changed);
        for (number, expected) in (1..).zip(expected) {
            let has = &found.peers[&key(number)].allowed_ips;
            ensure!(
                has == expected,
                "{what}: peer {number} has {} allowed IPs, not {}",
                has.len(),
                expected.len()
            );
        }
        ensure!(found == end.agree()?);
        Ok(())
    };
    let none = BTreeSet::new();
    let mk_peer = |number, add: &BTreeSet<IpNet>| peer(key(number), "192.0.2.1:51820", add.clone());
    let change = |number, add: &BTreeSet<IpNet>, drop: &BTreeSet<IpNet>| PeerChange {
        add: add.clone(),
        drop: drop.clone(),
        ..PeerChange::new(key(number))
    };
    timed("40,000 come", vec![mk_peer(1, &all), mk_peer(2, &none)], [&all, &none])?;
    timed("20,000 move", vec![change(1, &none, &half), change(2, &half, &none)], [&rest, &half])?;
    timed("and go", vec![change(2, &none, &half)], [&rest, &none])?;
    timed("one goes", vec![change(1, &none, &[v4(1)].into())], [&(&rest - &[v4(1)].into()), &none])?;
    Ok(())
}
