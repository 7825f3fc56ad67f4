//! Forged packets: whatever source address, straight onto the underlay.

use std::net::IpAddr;

use anyhow::{Result, bail};
use etherparse::PacketBuilder;

use super::udp;
use crate::capture::FrameSender;
use crate::netns::Netns;

/// Sends, from the machine `from` on the underlay to the machine `via` on the same link, a UDP datagram
/// called `name` (see [`udp::Receiver`]) that claims to come from `source`.
pub fn forge(
    from: &Netns,
    via: &Netns,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    name: &str,
) -> Result<()> {
    let ethernet = PacketBuilder::ethernet2(from.mac("eth0")?, via.mac("eth0")?);
    let packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => bail!("a packet cannot go from {source} to {destination}"),
    };
    let mut frame = Vec::new();
    packet.udp(port, port).write(&mut frame, &udp::payload(name))?;
    from.run(|| FrameSender::open("eth0")?.send(&frame))?
}
