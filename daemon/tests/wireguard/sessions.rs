//! What a change must not do to traffic.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use warren_core::{DeviceChange, PeerChange};
use warren_testkit::traffic::ping::{Flood, Ping};
use warren_testkit::wait;

use crate::common::{End, FAR, INTERFACE, key, nets, pair, peer};

/// Runs `changes` while one end pings the other; fails if a ping is lost or the session is another one afterwards.
fn under_traffic(one: &End, two: &End, changes: impl FnOnce() -> Result<()>) -> Result<()> {
    let received = || -> Result<u64> { Ok(one.observe()?.peers[&two.identity.public()].rx_bytes) };
    let flood = Flood::start(&one.netns, FAR, Duration::from_millis(2))?;
    let (start, before) = (Instant::now(), (handshake(one, two)?, received()?));
    changes()?;
    let after = (handshake(one, two)?, received()?);
    let answers = flood.stop()?;
    println!("{answers}, in {:.1?}", start.elapsed());
    answers.complete()?;
    ensure!(after.1 > before.1, "the peer was made anew: its counters began again");
    ensure!(after.0 == before.0, "there was a new handshake: {} after {}", after.0, before.0);
    Ok(())
}

/// When the session began, by `wg`. Sessions are renewed after 120 s (REKEY_AFTER_TIME); these scenarios are over
/// before.
fn handshake(one: &End, two: &End) -> Result<String> {
    let all = one.netns.sh(&format!("wg show {INTERFACE} latest-handshakes"))?;
    let line = all.lines().find(|line| line.starts_with(&two.identity.public().to_string()));
    Ok(line.context("the peer is gone")?.to_owned())
}

pub fn changes_of_others() -> Result<()> {
    let (one, two) = pair()?;
    under_traffic(&one, &two, || {
        for round in 0..5 {
            let others = || (0..100).map(|number| round * 100 + number);
            one.set_peers(others().map(|n| {
                let net = nets(&[&format!("10.{}.{}.0/24", n / 250, n % 250), &format!("fd00:{n:x}::/64")]);
                peer(key(n), "192.0.2.99:51820", net)
            }))?;
            one.set_peers(others().map(|n| PeerChange {
                drop: nets(&[&format!("fd00:{n:x}::/64")]),
                add: nets(&[&format!("fd01:{n:x}::/64")]),
                keepalive: Some(7),
                ..PeerChange::new(key(n))
            }))?;
            one.configure(&DeviceChange { fwmark: Some(round), identity: true, ..DeviceChange::default() })?;
            one.set_peers(others().map(|n| PeerChange { remove: true, ..PeerChange::new(key(n)) }))?;
            ensure!(one.agree()?.peers.len() == 1);
        }
        Ok(())
    })
}

pub fn own_allowed_ips() -> Result<()> {
    let (one, two) = pair()?;
    let far = two.identity.public();
    // Around the one in use in the kernel's tree: above, beside and below. Not what covers the pinged address more
    // narrowly: where the kernel cannot remove it otherwise, it takes that address's packets along for an instant.
    // Warren's networks do not overlap.
    let others = ["10.244.0.0/16", "10.244.3.0/24", "10.244.2.128/25", "fd00:2::/64", "0.0.0.0/0"];
    let many: Vec<String> = (0..2000).map(|n| format!("10.99.{}.{}/32", n / 250, n % 250)).collect();
    let many = nets(&many.iter().map(String::as_str).collect::<Vec<_>>());
    under_traffic(&one, &two, || {
        let mut rounds = 0;
        for _ in 0..60 {
            for net in others {
                for (add, drop) in [(nets(&[net]), nets(&[])), (nets(&[]), nets(&[net]))] {
                    one.set_peers([PeerChange { add, drop, ..PeerChange::new(far) }])?;
                    rounds += 1;
                }
            }
        }
        one.set_peers([PeerChange { add: many.clone(), ..PeerChange::new(far) }])?;
        ensure!(one.observe()?.peers[&far].allowed_ips.len() == 2001);
        one.set_peers([PeerChange { drop: many.clone(), ..PeerChange::new(far) }])?;
        ensure!(one.agree()?.peers[&far].allowed_ips == nets(&["10.244.2.0/24"]));
        // To another peer and back.
        for _ in 0..20 {
            one.set_peers([
                PeerChange { drop: nets(&["10.98.0.0/16"]), ..PeerChange::new(far) },
                peer(key(1), "192.0.2.99:51820", nets(&["10.98.0.0/16"])),
            ])?;
            one.set_peers([
                PeerChange { add: nets(&["10.98.0.0/16"]), ..PeerChange::new(far) },
                PeerChange { drop: nets(&["10.98.0.0/16"]), ..PeerChange::new(key(1)) },
            ])?;
            ensure!(one.agree()?.peers[&far].allowed_ips.len() == 2);
        }
        println!("{rounds} networks added or removed one by one");
        Ok(())
    })
}

pub fn endpoints() -> Result<()> {
    let (one, two) = pair()?;
    let far = two.identity.public();
    two.netns.ip("address add 192.0.2.22/24 dev eth0")?;
    under_traffic(&one, &two, || {
        let endpoint = Some("192.0.2.22:51820".parse()?);
        // A packet that the far end sent from its old address, and that arrives after the change, turns it back:
        // that is roaming.
        wait::until("the new endpoint", Duration::from_secs(5), || {
            one.set_peers([PeerChange { endpoint, keepalive: Some(3), ..PeerChange::new(far) }])?;
            std::thread::sleep(Duration::from_millis(100));
            let found = one.agree()?.peers[&far].endpoint;
            ensure!(found == endpoint, "it is {found:?}");
            Ok(())
        })?;
        one.configure(&DeviceChange { fwmark: Some(9), ..DeviceChange::default() })?;
        Ok(())
    })?;
    // The own port. What is on its way to the old one is lost; the far end follows the first packet from the new one.
    let before = handshake(&one, &two)?;
    one.configure(&DeviceChange { listen_port: Some(51900), ..DeviceChange::default() })?;
    Ping::default().run(&one.netns, FAR)?.complete()?;
    let found = two.agree()?.peers[&one.identity.public()].endpoint;
    ensure!(found == Some("192.0.2.1:51900".parse()?), "the far end sends to {found:?}");
    ensure!(handshake(&one, &two)? == before, "another port took a new handshake");
    Ok(())
}
