//! Marks of congestion (RFC 3168) pass the tunnel, split and coalesced, both ways.

use anyhow::{Context, Result, ensure};

use super::offloads::{self, MTU, size, transfer};
use super::site::{End, Family, INTERFACE, ONE, Site};

const BYTES: usize = 32 << 20;

/// What an end counts: packets that it marks on their way into the tunnel, and of those that come out of it the marked
/// ones, those that echo marks, and those that tell of a reaction.
const COUNTERS: &str = "table inet ecn_marks {\n\
     counter marked { }\ncounter arrived { }\ncounter echoed { }\ncounter reacted { }\n\
     chain input { type filter hook input priority 0;\n\
       iifname wg0 ip ecn ce counter name arrived\n\
       iifname wg0 ip6 ecn ce counter name arrived\n\
       iifname wg0 tcp flags & (ecn | syn) == ecn counter name echoed\n\
       iifname wg0 tcp flags & (cwr | syn) == cwr counter name reacted\n\
     }\n\
   }";
/// Each hundredth packet, most of which are super-packets, is marked as a router would do that is short of room.
const MARK: &str = "table inet ecn_marks {\n\
     chain output { type filter hook postrouting priority 0;\n\
       oifname wg0 ip ecn ect0 numgen inc mod 100 0 counter name marked ip ecn set ce\n\
       oifname wg0 ip6 ecn ect0 numgen inc mod 100 0 counter name marked ip6 ecn set ce\n\
     }\n\
   }";

pub fn marks() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let Site { left, right } = &site;
    for end in [left, right] {
        // One that reacts as the RFC has it, whatever the machine prefers.
        end.netns.sysctl(&[("net.ipv4.tcp_ecn", "1"), ("net.ipv4.tcp_congestion_control", "reno")])?;
        end.netns.nft(COUNTERS)?;
    }
    ensure!(seen(left, right)? == [0; 4], "there are marks before any were made");
    transfer(left, right, right.inner()[0], BYTES / 8)?;
    ensure!(seen(left, right)? == [0; 4], "there are marks that nobody made");
    left.netns.nft(MARK)?;
    for address in right.inner() {
        let (packets, before) = (offloads::sent(left, INTERFACE)?, seen(left, right)?);
        transfer(left, right, address, BYTES).with_context(|| format!("to {address}"))?;
        let size = size(packets, offloads::sent(left, INTERFACE)?);
        let after = seen(left, right)?;
        let [marked, arrived, echoed, reacted] = [0, 1, 2, 3].map(|at| after[at] - before[at]);
        println!(
            "to {address}, {size} bytes per packet: {marked} packets marked, {arrived} came, {echoed} echoes, \
             {reacted} reactions"
        );
        ensure!(marked.min(arrived).min(echoed).min(reacted) > 0, "a mark is lost on the way");
        ensure!(size > 2 * MTU, "hardly any super-packets");
    }
    Ok(())
}

/// Marked on the left, arrived on the right, echoed to the left, reacted to.
fn seen(left: &End, right: &End) -> Result<[u64; 4]> {
    let count = |end: &End, name| end.counter("ecn_marks", name);
    Ok([count(left, "marked")?, count(right, "arrived")?, count(left, "echoed")?, count(right, "reacted")?])
}
