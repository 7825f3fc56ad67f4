//! Changes under traffic.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::netns::Netns;
use warren_testkit::traffic::ping::{Flood, Ping};
use warren_testkit::wait;
use warren_tunnel::uapi::{DeviceUpdate, PeerUpdate};
use zeroize::Zeroizing;

use super::site::{Family, INTERFACE, ONE, Program, SOON, Site};

const INTERVAL: Duration = Duration::from_millis(5);

pub fn mark() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    site.left.netns.nft(
        "table inet t {\n\
           counter marked { }\n\
           chain c { type filter hook output priority 0; udp sport 51801 meta mark 0x77 counter name marked; }\n\
         }",
    )?;
    let flood = Flood::start(&site.left.netns, site.right.inner()[0], INTERVAL)?;
    ensure!(marked(&site)? == 0, "packets are marked before they should be");
    site.left.set(&DeviceUpdate { fwmark: Some(0x77), ..DeviceUpdate::default() })?;
    wait::until("marked packets", SOON, || {
        ensure!(marked(&site)? > 10, "too few");
        Ok(())
    })?;
    ensure!(site.left.get()?.fwmark == 0x77);
    site.left.set(&DeviceUpdate { fwmark: Some(0), ..DeviceUpdate::default() })?;
    let answers = flood.stop()?;
    println!("mark set and taken away: {answers}");
    answers.complete()
}

fn marked(site: &Site) -> Result<u64> {
    site.left.counter("t", "marked")
}

pub fn port() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let mut site = Site::joined(ONE, ONE, family)?;
        site.ping()?;
        let mut flood = Flood::start(&site.left.netns, site.right.inner()[0], INTERVAL)?;
        for step in 1..=5 {
            site.left.port = 52000 + step;
            site.left.set(&DeviceUpdate { listen_port: Some(site.left.port), ..DeviceUpdate::default() })?;
            flood.await_answer(SOON)?;
        }
        site.left.set(&DeviceUpdate { listen_port: Some(0), ..DeviceUpdate::default() })?;
        let random = site.left.get()?.listen_port;
        ensure!(random != 0 && random != site.left.port, "port 0 gave {random}");
        let answers = flood.stop()?;
        println!("6 changes of port, {family:?}: {answers}");
        // Whatever the peer has sent to the old port when it closes is lost: of one ping per change, if any.
        ensure!(answers.missing.len() <= 6 && answers.longest_gap() <= 1, "{answers}");
    }
    Ok(())
}

pub fn taken_port() -> Result<()> {
    for lanes in [1, 4] {
        let site = Site::joined(Program::Warren { lanes }, ONE, Family::V4)?;
        site.ping()?;
        // For several lanes, the last of the ports.
        let taken = 53000 + lanes - 1;
        let _socket = site.left.netns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, taken)))??;
        let flood = Flood::start(&site.left.netns, site.right.inner()[0], INTERVAL)?;
        let set = site.left.netns.sh(&format!("wg set {INTERFACE} listen-port 53000 fwmark 5"));
        let error = set.err().context("a taken port was accepted")?;
        ensure!(format!("{error:#}").contains("Address already in use"), "{error:#}");
        let state = site.left.get()?;
        ensure!(
            (state.listen_port, state.fwmark) == (site.left.port, 0),
            "half of it was applied: {state:?}"
        );
        flood.stop()?.complete()?;
        // One port further overlaps with our own ports.
        site.left.netns.sh(&format!("wg set {INTERFACE} listen-port {}", site.left.port + 1))?;
        site.ping()?;
    }
    Ok(())
}

pub fn peers() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    let Site { left, right } = &site;
    site.ping()?;
    let flood = Flood::start(&left.netns, right.inner()[0], INTERVAL)?;
    let before = left.peer(right)?.last_handshake;
    for psk in [[1; 32], [2; 32], [0; 32]] {
        let psk = Some(Zeroizing::new(psk));
        let last = left.peer(right)?.last_handshake;
        left.set_peer(PeerUpdate { preshared_key: psk.clone(), ..PeerUpdate::new(right.public()) })?;
        right.set_peer(PeerUpdate { preshared_key: psk, ..PeerUpdate::new(left.public()) })?;
        // The end that was told first may have to repeat its handshake after 5 s.
        wait::until("a handshake with the new PSK", 3 * SOON, || {
            ensure!(left.peer(right)?.last_handshake > last, "none yet");
            Ok(())
        })?;
    }
    for family in [Family::V6, Family::V4] {
        left.set_peer(left.peer_update(right, Some(family)))?;
        wait::until("following to the other family", SOON, || {
            ensure!(right.peer(left)?.endpoint == Some(left.endpoint(family)), "not yet");
            Ok(())
        })?;
    }
    for number in 0..100 {
        let mut other = PeerUpdate::new([number + 3; 32]);
        left.set_peer(other.clone())?;
        other.remove = number % 2 == 0;
        left.set_peer(other)?;
    }
    ensure!(left.peer(right)?.last_handshake > before);
    let answers = flood.stop()?;
    println!("3 PSKs, 2 endpoints, 100 other peers: {answers}");
    answers.complete()
}

/// Answers come from the address that was asked, whichever the routes would choose; and from another once it is gone.
pub fn second_address() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    let Site { left, right } = &site;
    left.netns.ip("address add 192.0.2.77/24 dev eth0\naddress add 2001:db8::77/64 dev eth0 nodad")?;
    for text in ["192.0.2.77", "192.0.2.1", "2001:db8::77", "2001:db8::1"] {
        let address = SocketAddr::new(text.parse()?, left.port);
        right.set_peer(PeerUpdate { endpoint: Some(address), ..PeerUpdate::new(left.public()) })?;
        right.ping(left)?;
        left.ping(right)?;
        let endpoint = right.peer(left)?.endpoint;
        ensure!(endpoint == Some(address), "asked at {address}, it answers from {endpoint:?}");
    }
    left.netns.ip("address del 2001:db8::1/64 dev eth0")?;
    left.ping(right)?;
    let endpoint = right.peer(left)?.endpoint;
    ensure!(endpoint != Some(left.endpoint(Family::V6)), "still {endpoint:?}, which is gone");
    right.ping(left)
}

pub fn mtu() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let link = site.left.netns.sh(&format!("ip link show {INTERFACE}"))?;
    ensure!(link.contains("mtu 1420"), "{link}");
    // With 1500 outside, an inner packet of 1437 bytes would be padded to 1440 and just fit, one of 1438
    // to 1440 still; at an MTU of 1438 it must not be padded at all.
    for end in [&site.left, &site.right] {
        end.netns.ip(&format!("link set {INTERFACE} mtu 1438"))?;
    }
    let sizes = wait::until("the new MTU", SOON, || {
        let before = site.left.peer(&site.right)?.tx_bytes;
        Ping { count: 1, size: 1438 - 28, ..Ping::default() }
            .run(&site.left.netns, site.right.inner()[0])?
            .complete()?;
        let sent = site.left.peer(&site.right)?.tx_bytes - before;
        ensure!(sent == 1438 + 32, "{sent} bytes for a packet of 1438");
        Ok(sent)
    })?;
    println!("a packet of the MTU's size, 1438: {sizes} bytes outside");
    Ok(())
}

pub fn fragments() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let site = Site::joined(ONE, ONE, family)?;
        for end in [&site.left, &site.right] {
            end.netns.ip(&format!("link set {INTERFACE} mtu 9000"))?;
        }
        Ping { size: 8000, ..Ping::default() }
            .run(&site.left.netns, site.right.inner()[1])?
            .complete()
            .with_context(|| format!("8 kB over {family:?}"))?;
    }
    Ok(())
}

pub fn without_ipv6() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.left.netns.sh("rm /run/wireguard/wg0.sock")?;
    site.left.wait_gone()?;
    site.left.netns.sysctl(&[("net.ipv6.conf.all.disable_ipv6", "1")])?;
    site.left.launch()?;
    site.left.netns.ip(&format!("address add 10.9.0.1/24 dev {INTERFACE}\nlink set {INTERFACE} up"))?;
    site.left.set(&site.left.identity())?;
    site.left.set_peer(site.left.peer_update(&site.right, Some(Family::V4)))?;
    let to = site.right.inner()[0];
    site.left.try_ping(to)?.complete()?;
    // A peer at an IPv6 address is out of reach, and nothing worse.
    site.left.set_peer(site.left.peer_update(&site.right, Some(Family::V6)))?;
    ensure!(site.left.try_ping(to)?.received == 0);
    site.left.set_peer(site.left.peer_update(&site.right, Some(Family::V4)))?;
    site.left.try_ping(to)?.complete()
}

/// A tunnel in a container, where it is called as the machine's own link is.
pub fn namesake() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let machine = &site.left.netns;
    let container = Netns::new("container")?;
    let before = machine.sh("ip -d link show eth0")?;
    machine.ip(&format!("link set {INTERFACE} netns container"))?;
    container.ip(&format!(
        "link set {INTERFACE} name eth0\naddress add 10.9.0.1/24 dev eth0\nlink set eth0 mtu 1300 up"
    ))?;
    // As many datagrams of 1332 bytes as one send takes.
    wait::until("the limit of segments", SOON, || {
        let link = container.sh("ip -d link show eth0")?;
        ensure!(link.contains("gso_max_segs 49 "), "{link}");
        Ok(())
    })?;
    let after = machine.sh("ip -d link show eth0")?;
    ensure!(after == before, "it was {before}, it is {after}");
    Ping { count: 1, size: 1300 - 28, ..Ping::default() }
        .run(&container, site.right.inner()[0])?
        .complete()?;
    // Nothing is padded beyond that MTU.
    let before = site.left.peer(&site.right)?.tx_bytes;
    Ping { count: 1, size: 1297 - 28, ..Ping::default() }
        .run(&container, site.right.inner()[0])?
        .complete()?;
    let sent = site.left.peer(&site.right)?.tx_bytes - before;
    ensure!(sent == 1300 + 32, "{sent} bytes for a packet of 1297");
    Ok(())
}
