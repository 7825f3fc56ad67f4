//! wireguard-go as the other end, through rekeys and moves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand_core::OsRng;
use warren_testkit::wait;
use warren_tunnel::uapi::{DeviceUpdate, PeerUpdate};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::site::{End, Family, ONE, Program, SOON, Site};

pub fn initiator_v4() -> Result<()> {
    converse(ONE, Program::Go, Family::V4)
}

pub fn initiator_v6() -> Result<()> {
    converse(ONE, Program::Go, Family::V6)
}

pub fn responder_v4() -> Result<()> {
    converse(Program::Go, ONE, Family::V4)
}

pub fn responder_v6() -> Result<()> {
    converse(Program::Go, ONE, Family::V6)
}

/// `left` makes every handshake; `right` learns from the packets where `left` is.
fn converse(left: Program, right: Program, family: Family) -> Result<()> {
    for psk in [None, Some([7; 32])] {
        let mut site = Site::new(left, right)?;
        introduce(&site, family, psk)?;
        let mut last = handshakes(&site).unwrap_or_default();
        step(&site, &mut last, "the first handshake")?;
        rekey_by_new_peer(&site, family, psk)?;
        step(&site, &mut last, "a rekey by a peer removed and added again")?;
        rekey_by_psk(&site, family)?;
        step(&site, &mut last, "a rekey by another PSK")?;
        rekey_by_private_key(&mut site, family)?;
        step(&site, &mut last, "a rekey by another private key")?;
        roam(&mut site, family).context("roaming")?;
    }
    Ok(())
}

fn introduce(site: &Site, family: Family, psk: Option<[u8; 32]>) -> Result<()> {
    let psk = psk.map(Zeroizing::new);
    let Site { left, right } = site;
    right.set_peer(PeerUpdate { preshared_key: psk.clone(), ..right.peer_update(left, None) })?;
    left.set_peer(PeerUpdate { preshared_key: psk, ..left.peer_update(right, Some(family)) })
}

/// When each end last completed a handshake.
fn handshakes(site: &Site) -> Option<[Duration; 2]> {
    let Site { left, right } = site;
    Some([left.peer(right).ok()?.last_handshake?, right.peer(left).ok()?.last_handshake?])
}

/// Pings, after which both ends must have completed a handshake since `last`.
fn step(site: &Site, last: &mut [Duration; 2], what: &str) -> Result<()> {
    site.left.ping(&site.right).with_context(|| format!("after {what}"))?;
    site.right.ping(&site.left).with_context(|| format!("backwards after {what}"))?;
    let new = handshakes(site).with_context(|| format!("{what} did not happen"))?;
    ensure!(new[0] > last[0] && new[1] > last[1], "{what} did not happen on both ends: {last:?}, {new:?}");
    *last = new;
    Ok(())
}

/// The initiator forgets the peer and learns of it anew; the other end keeps its session.
fn rekey_by_new_peer(site: &Site, family: Family, psk: Option<[u8; 32]>) -> Result<()> {
    let Site { left, right } = site;
    left.set_peer(PeerUpdate { remove: true, ..PeerUpdate::new(right.public()) })?;
    let preshared_key = psk.map(Zeroizing::new);
    left.set_peer(PeerUpdate { preshared_key, ..left.peer_update(right, Some(family)) })
}

/// Both get another PSK. wireguard-go uses it at its next handshake, so its side starts over.
fn rekey_by_psk(site: &Site, family: Family) -> Result<()> {
    let Site { left, right } = site;
    let psk = Some(Zeroizing::new([9; 32]));
    right.set_peer(PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(left.public()) })?;
    left.set_peer(PeerUpdate { remove: true, ..PeerUpdate::new(right.public()) })?;
    left.set_peer(PeerUpdate { preshared_key: psk, ..left.peer_update(right, Some(family)) })
}

/// The initiator gets another private key, and the responder a new peer for it.
fn rekey_by_private_key(site: &mut Site, family: Family) -> Result<()> {
    let old = site.left.public();
    site.left.private = StaticSecret::random_from_rng(OsRng);
    let Site { left, right } = site;
    let psk = Some(Zeroizing::new([9; 32]));
    right.set_peer(PeerUpdate { remove: true, ..PeerUpdate::new(old) })?;
    right.set_peer(PeerUpdate { preshared_key: psk.clone(), ..right.peer_update(left, None) })?;
    left.set(&DeviceUpdate {
        private_key: Some(Zeroizing::new(left.private.to_bytes())),
        ..DeviceUpdate::default()
    })?;
    left.set_peer(PeerUpdate { preshared_key: psk, ..left.peer_update(right, Some(family)) })
}

/// Both move to another port, one after the other, and are followed.
fn roam(site: &mut Site, family: Family) -> Result<()> {
    let before = handshakes(site);
    for _ in 0..2 {
        site.left.port += 100;
        move_to(&site.left)?;
        site.left.ping(&site.right)?;
        follows(&site.right, &site.left, family)?;
        site.right.port += 100;
        move_to(&site.right)?;
        site.right.ping(&site.left)?;
        follows(&site.left, &site.right, family)?;
    }
    ensure!(handshakes(site) == before, "a move took a handshake");
    Ok(())
}

fn move_to(end: &End) -> Result<()> {
    end.set(&DeviceUpdate { listen_port: Some(end.port), ..DeviceUpdate::default() })?;
    let port = end.get()?.listen_port;
    ensure!(port == end.port, "it listens on {port}");
    Ok(())
}

fn follows(end: &End, other: &End, family: Family) -> Result<()> {
    wait::until("following the peer", SOON, || {
        let endpoint = end.peer(other)?.endpoint;
        ensure!(endpoint == Some(other.endpoint(family)), "still {endpoint:?}");
        Ok(())
    })
}
