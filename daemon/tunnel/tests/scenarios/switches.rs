//! What is switched off with ethtool(8), on either side, changes nothing but the speed.

use anyhow::{Context, Result, ensure};

use super::offloads::{self, MTU, datagrams, transfer};
use super::site::{Family, INTERFACE, ONE, Program, Site};

/// The interface of the link below the tunnel.
const LINK: &str = "eth0";
/// The longest packet on it, as it is counted: with the Ethernet header.
const LINK_MTU: u64 = 1500 + 14;
/// Of each transfer by TCP.
const BYTES: usize = 4 << 20;

/// Super-packets are in use where the mean packet is so many times as long as the MTU: 4 on an emulated processor, 36 on a
/// real one. Where they are not, none is longer.
const WHOLE: u64 = 2;

/// A feature by the names that `ethtool -K` and `ethtool -k` have for it.
type Feature = (&'static str, &'static str);
const RX: Feature = ("rx", "rx-checksumming");
const TX: Feature = ("tx", "tx-checksumming");
const SG: Feature = ("sg", "scatter-gather");
const TSO: Feature = ("tso", "tcp-segmentation-offload");
const GSO: Feature = ("gso", "generic-segmentation-offload");
const USO: Feature = ("tx-udp-segmentation", "tx-udp-segmentation");

#[derive(Clone, Copy, Debug)]
enum Side {
    Left,
    Right,
}

/// What is switched off, where, and whether the interface is then given no packet that is longer than its MTU.
#[derive(Debug)]
struct Case {
    side: Side,
    interface: &'static str,
    off: &'static [Feature],
    singly: bool,
}

const CASES: [Case; 6] = [
    Case { side: Side::Left, interface: INTERFACE, off: &[TSO, GSO], singly: true },
    Case { side: Side::Left, interface: INTERFACE, off: &[TX, SG, TSO, GSO], singly: true },
    // The kernel cuts what the tunnel sends in runs.
    Case { side: Side::Left, interface: LINK, off: &[USO], singly: true },
    // It refuses them altogether where it could not complete the checksums (Linux 6.1 does; 6.18 does not).
    Case { side: Side::Left, interface: LINK, off: &[TX, TSO, GSO], singly: true },
    Case { side: Side::Right, interface: LINK, off: &[RX], singly: false },
    Case { side: Side::Right, interface: INTERFACE, off: &[TSO], singly: true },
];

pub fn same_bytes() -> Result<()> {
    all_on().context("nothing switched off")?;
    for other in [ONE, Program::Go] {
        for case in &CASES {
            let is_ours = matches!(case.side, Side::Left) || case.interface == LINK || other == ONE;
            if is_ours {
                check(case, other).with_context(|| format!("{case:?}, the other end {other:?}"))?;
            }
        }
    }
    Ok(())
}

/// What the cases switch off is in use without them.
fn all_on() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    for Sizes { tun, link } in exchange(&site, ONE)? {
        println!("nothing switched off: {tun} bytes per packet from the TUN, {link} on the link");
        ensure!(tun > WHOLE * MTU && link > WHOLE * LINK_MTU, "hardly any super-packets or runs");
    }
    Ok(())
}

fn check(case: &Case, other: Program) -> Result<()> {
    let Case { side, interface, off, singly } = case;
    let site = Site::joined(ONE, other, Family::V4)?;
    site.ping()?;
    let (end, at) = match side {
        Side::Left => (&site.left, 0),
        Side::Right => (&site.right, 1),
    };
    for (_, feature) in *off {
        ensure!(offloads::has(end, interface, feature)?, "{feature} is off before it is switched");
    }
    let switches: Vec<String> = off.iter().map(|(switch, _)| format!("{switch} off")).collect();
    end.netns.sh(&format!("ethtool -K {interface} {}", switches.join(" ")))?;
    for (_, feature) in *off {
        ensure!(!offloads::has(end, interface, feature)?, "{feature} cannot be switched off");
    }
    let Sizes { tun, link } = exchange(&site, other)?[at];
    println!(
        "{side:?}, {interface}, {}: {tun} bytes per packet from the TUN, {link} on the link",
        switches.join(", ")
    );
    if *singly && *interface == LINK {
        ensure!(link <= LINK_MTU, "runs are on the link whole");
        // Old versions of wireguard-go are slow enough to keep TCP's packets small.
        ensure!(tun > WHOLE * MTU || other != ONE, "super-packets are gone, too");
    } else if *singly {
        ensure!(tun <= MTU, "super-packets come from the TUN");
    }
    if let Some(given_up) = end.get()?.fallbacks.get("segmentation_refused") {
        println!("runs given up: {given_up}");
        let refuses = *interface == LINK && off.contains(&TX);
        ensure!(*given_up <= u64::from(refuses), "{given_up} times, and once where the kernel refuses");
    }
    Ok(())
}

/// Bytes per packet of TCP that an end has sent.
#[derive(Clone, Copy)]
struct Sizes {
    /// Into the tunnel.
    tun: u64,
    /// On the link below it.
    link: u64,
}

/// Sends both ways, TCP and UDP, over IPv4 and IPv6, and compares what arrives. Returns what left sent, and what right did.
fn exchange(site: &Site, other: Program) -> Result<[Sizes; 2]> {
    let ways = [(&site.left, &site.right), (&site.right, &site.left)];
    let [left, right] = ways.map(|(from, to)| {
        let sent = || anyhow::Ok([offloads::sent(from, INTERFACE)?, offloads::sent(from, LINK)?]);
        let before = sent()?;
        for address in to.inner() {
            transfer(from, to, address, BYTES).with_context(|| format!("TCP to {address}"))?;
        }
        let after = sent()?;
        for address in to.inner() {
            let lost = datagrams(from, to, address, false).with_context(|| format!("UDP to {address}"))?;
            // Old versions of wireguard-go lose some by themselves, see `End::ping`.
            ensure!(lost == 0 || other == Program::Go, "{lost} datagrams to {address} were lost");
        }
        let [tun, link] = [0, 1].map(|at| offloads::size(before[at], after[at]));
        anyhow::Ok(Sizes { tun, link })
    });
    Ok([left?, right?])
}
