//! Looks for a flow's packets on the lanes, with a packet socket (packet(7)).

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::counters::Lane;
use super::flow::{Flow, Protocol};

/// `PACKET_OUTGOING` of linux/if_packet.h.
const OUTGOING: u8 = 4;

/// Bytes of a packet that are looked at: IPv6 with a few extension headers, and ports.
const HEADERS: usize = 256;

/// What one lane carried of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The lane.
    pub interface: String,
    /// Packets of the flow.
    pub out: u64,
    /// Packets of its answers.
    pub back: u64,
}

/// Counts the packets of a flow and of its answers on each lane for some time. On a busy node, where more packets pass
/// than can be looked at, it misses some.
pub fn watch(flow: &Flow, lanes: &[Lane], time: Duration) -> Result<Vec<Seen>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    // Without Ethernet headers, which tunnels do not have either.
    let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
        .context("opening a packet socket; it takes the capability NET_RAW")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).context("setting a timeout")?;
    let mut seen: Vec<Seen> =
        lanes.iter().map(|lane| Seen { interface: lane.interface.clone(), out: 0, back: 0 }).collect();
    let answers = flow.reversed();
    let deadline = Instant::now() + time;
    let mut bytes = [0; HEADERS];
    while Instant::now() < deadline {
        let (length, from) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut bytes) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("receiving from a packet socket"),
        };
        let Some(from) = from else { continue };
        let Some(lane) = lanes.iter().position(|lane| lane.index == from.ifindex()) else { continue };
        let Some(packet) = flow_of(&bytes[..length.min(HEADERS)]) else { continue };
        match from.pkttype() == OUTGOING {
            true if packet == *flow => seen[lane].out += 1,
            false if packet == answers => seen[lane].back += 1,
            _ => {}
        }
    }
    Ok(seen)
}

/// The flow that a packet belongs to, which may be cut off after its headers.
fn flow_of(packet: &[u8]) -> Option<Flow> {
    let packet = LaxSlicedPacket::from_ip(packet).ok()?;
    let (source, destination) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    let (protocol, from, to) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (Protocol::Tcp, tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (Protocol::Udp, udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    let end = SocketAddr::new;
    Some(Flow { protocol, source: end(source, from), destination: end(destination, to) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_by_their_headers() {
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 9);
        let mut packet = Vec::new();
        builder.write(&mut packet, &[0; 1000]).unwrap();
        let flow: Flow = "udp,10.0.0.1:7,10.0.0.2:9".parse().unwrap();
        assert_eq!(flow_of(&packet), Some(flow.clone()));
        assert_eq!(flow_of(&packet[..HEADERS]), Some(flow), "cut off");
        assert_eq!(flow_of(&packet[..20]), None, "without ports");
        assert_eq!(flow_of(&[]), None);

        let mut ends = ([0; 16], [0; 16]);
        (ends.0[15], ends.1[15]) = (1, 2);
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv6(ends.0, ends.1, 64).tcp(7, 9, 0, 0).write(&mut packet, &[]).unwrap();
        assert_eq!(flow_of(&packet), Some("tcp,[::1]:7,[::2]:9".parse().unwrap()));
    }
}
