//! What one frame on the underlay is: pure, from its first bytes.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use etherparse::{EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, ip_number};
use ipnet::IpNet;

/// What makes a frame clear text, and what makes it WireGuard.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Addresses that must never be seen, outside or inside of any encapsulation.
    pub pods: Vec<IpNet>,
    /// The UDP ports of the mesh.
    pub mesh_ports: RangeInclusive<u16>,
    /// Bytes that the traffic carries and that must never be seen.
    pub canary: &'static [u8],
    /// Between these, nothing but WireGuard must be seen, and how machines on a link find each other.
    pub nodes: Vec<IpNet>,
    /// The Ethernet addresses of machines outside of the cluster: what is sent by or to them is not between nodes,
    /// and nothing that must not be seen.
    pub outside: Vec<[u8; 6]>,
}

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// A WireGuard message of this type: 1 initiation, 2 response, 3 cookie, 4 data.
    WireGuard(u8),
    /// A packet of a pod, readable.
    Clear(Offender),
    /// ARP, neighbour discovery, multicast listener reports: how machines on a link find each other. And datagrams
    /// of zeros to a port of the mesh, by which Warren finds out how large a packet may be.
    Control,
    /// A fragment of an IP packet other than those above. The mesh's own packets are never to be one.
    Fragment,
    /// Anything else, not of a pod.
    Other,
    /// Sent by or to a machine outside of the cluster.
    Outside,
}

/// Why a frame is clear text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// The addresses, from the outermost header to the one that gave it away.
    pub headers: Vec<Header>,
    /// Whether the canary gave it away, and not an address.
    pub canary: bool,
}

/// The essentials of an IP header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: IpNumber,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.keyword_str().unwrap_or("protocol");
        write!(f, "{} > {} {protocol} ({})", self.source, self.destination, self.protocol.0)
    }
}

impl fmt::Display for Offender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<String> = self.headers.iter().map(ToString::to_string).collect();
        f.write_str(&headers.join(", carrying "))?;
        if self.canary { f.write_str(", with the canary readable in it") } else { Ok(()) }
    }
}

impl Rules {
    /// Classifies the first bytes of an Ethernet frame.
    pub fn classify(&self, frame: &[u8]) -> Class {
        let mut headers = Vec::new();
        let is_outside =
            |at: usize| frame.get(at..at + 6).is_some_and(|mac| self.outside.iter().any(|it| it == mac));
        if is_outside(0) || is_outside(6) {
            return Class::Outside;
        }
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return Class::Other };
        if self.gives_pod_away(&packet, &mut headers) {
            return Class::Clear(Offender { headers, canary: false });
        }
        if memchr::memmem::find(frame, self.canary).is_some() {
            return Class::Clear(Offender { headers, canary: true });
        }
        let class = match &packet.net {
            Some(LaxNetSlice::Arp(_)) => Class::Control,
            Some(net) => self.classify_ip(net),
            None => Class::Other,
        };
        let is_node = |address: &IpAddr| self.nodes.iter().any(|net| net.contains(address));
        match (class, &headers[..]) {
            (Class::Other | Class::Fragment, [header, ..])
                if is_node(&header.source) && is_node(&header.destination) =>
            {
                Class::Clear(Offender { headers, canary: false })
            }
            (class, _) => class,
        }
    }

    /// Classifies an IP packet that is no clear text.
    fn classify_ip(&self, net: &LaxNetSlice) -> Class {
        let Some(ip) = net.ip_payload_ref() else { return Class::Other };
        match ip.ip_number {
            _ if ip.fragmented => Class::Fragment,
            // Multicast listener messages (RFC 3810) and neighbour discovery (RFC 4861).
            ip_number::IPV6_ICMP => match ip.payload.first() {
                Some(130..=137 | 143) => Class::Control,
                _ => Class::Other,
            },
            ip_number::UDP => match *ip.payload {
                // Source port, destination port, length, checksum; then WireGuard's type and reserved bytes.
                [s0, s1, d0, d1, _, _, _, _, kind @ 1..=4, 0, 0, 0, ..]
                    if [[s0, s1], [d0, d1]]
                        .map(u16::from_be_bytes)
                        .iter()
                        .any(|p| self.mesh_ports.contains(p)) =>
                {
                    Class::WireGuard(kind)
                }
                [_, _, d0, d1, _, _, _, _, 0, ref probe @ ..]
                    if self.mesh_ports.contains(&u16::from_be_bytes([d0, d1]))
                        && probe.iter().all(|byte| *byte == 0) =>
                {
                    Class::Control
                }
                _ => Class::Other,
            },
            _ => Class::Other,
        }
    }

    /// Whether a pod's address stands in this packet's header or in one that it carries; collects the
    /// headers on the way there.
    fn gives_pod_away(&self, packet: &LaxSlicedPacket, headers: &mut Vec<Header>) -> bool {
        let (source, destination): (IpAddr, IpAddr) = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(LaxNetSlice::Arp(_)) | None => return false,
        };
        let Some(ip) = packet.net.as_ref().and_then(LaxNetSlice::ip_payload_ref) else { return false };
        headers.push(Header { source, destination, protocol: ip.ip_number });
        let is_pod = |address: &IpAddr| self.pods.iter().any(|cidr| cidr.contains(address));
        if is_pod(&source) || is_pod(&destination) {
            return true;
        }
        // An attacker may nest without end; nobody's encapsulation is deeper than this.
        let found = headers.len() < 4
            && carried(ip.ip_number, ip.payload).is_some_and(|inner| self.gives_pod_away(&inner, headers));
        if !found {
            headers.truncate(1);
        }
        found
    }
}

/// The packet within the payload of an IP packet, where it is an encapsulation without encryption, or an
/// ICMP error that quotes a packet.
fn carried(protocol: IpNumber, payload: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    let ip = |bytes| LaxSlicedPacket::from_ip(bytes).ok();
    let ethernet = |bytes| LaxSlicedPacket::from_ethernet(bytes).ok();
    match protocol {
        ip_number::IPV4 | ip_number::IPV6 => ip(payload),
        ip_number::GRE => {
            // RFC 2784 and 2890: checksum, key and sequence number are there when their flags are set.
            let [flags, _, kind @ ..] = payload else { return None };
            let kind = u16::from_be_bytes([*kind.first()?, *kind.get(1)?]);
            let options = [0x80, 0x20, 0x10].iter().filter(|flag| flags & **flag != 0).count();
            let inner = payload.get(4 + 4 * options..)?;
            // 0x6558: transparent Ethernet bridging.
            if kind == 0x6558 {
                ethernet(inner)
            } else {
                LaxSlicedPacket::from_ether_type(EtherType(kind), inner).into()
            }
        }
        ip_number::UDP => {
            let port = u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]);
            let payload = payload.get(8..)?;
            match port {
                // VXLAN: the assigned port, and Linux's and flannel's.
                4789 | 8472 => ethernet(payload.get(8..)?),
                // Geneve, RFC 8926: its options' length in words in the low six bits.
                6081 => ethernet(payload.get(8 + 4 * usize::from(payload.first()? & 0x3f)..)?),
                _ => None,
            }
        }
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        ip_number::ICMP if matches!(payload.first(), Some(3 | 4 | 5 | 11 | 12)) => ip(payload.get(8..)?),
        // Types below 128 are errors.
        ip_number::IPV6_ICMP if matches!(payload.first(), Some(0..=127)) => ip(payload.get(8..)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};

    const POD: [u8; 4] = [10, 244, 1, 11];
    const NODE: [u8; 4] = [192, 0, 2, 1];
    const PEER: [u8; 4] = [192, 0, 2, 2];
    const POD6: [u8; 16] = [0xfd, 0, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
    const NODE6: [u8; 16] = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn rules() -> Rules {
        Rules {
            pods: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
            mesh_ports: 51820..=51827,
            canary: b"a canary of tests",
            nodes: Vec::new(),
            outside: Vec::new(),
        }
    }

    /// UDP from one IPv4 address to another, with its Ethernet header.
    fn udp(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(source, destination, 64)
            .udp(4000, port)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn udp6(source: [u8; 16], destination: [u8; 16], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(source, destination, 64)
            .udp(4000, port)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    /// An IPv4 packet of any protocol between nodes.
    fn ip(protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(NODE, PEER, 64)
            .write(&mut frame, protocol, payload)
            .unwrap();
        frame
    }

    fn is_clear(frame: &[u8]) -> bool {
        matches!(rules().classify(frame), Class::Clear(_))
    }

    #[test]
    fn a_pod_on_either_end_is_clear_text() {
        assert!(is_clear(&udp(POD, PEER, 53, b"")));
        assert!(is_clear(&udp(NODE, POD, 53, b"")));
        assert!(is_clear(&udp6(POD6, NODE6, 53, b"")));
        assert!(is_clear(&udp6(NODE6, POD6, 53, b"")));
        assert!(!is_clear(&udp(NODE, PEER, 53, b"")));
        assert!(!is_clear(&udp6(NODE6, NODE6, 53, b"")));
    }

    #[test]
    fn a_pod_cannot_hide_behind_wireguards_port() {
        assert!(is_clear(&udp(POD, PEER, 51820, &[4, 0, 0, 0, 1, 2, 3, 4])));
    }

    #[test]
    fn encapsulation_is_not_encryption() {
        let inner = udp(POD, PEER, 53, b"hello");
        let inner6 = udp6(NODE6, POD6, 53, b"hello");
        for inner in [inner, inner6] {
            let (packet, is_v4) = (&inner[14..], inner[12] == 8);
            assert!(is_clear(&ip(if is_v4 { ip_number::IPV4 } else { ip_number::IPV6 }, packet)));
            let kind: &[u8] = if is_v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] };
            assert!(is_clear(&ip(ip_number::GRE, &[&[0, 0], kind, packet].concat())));
            assert!(is_clear(&ip(ip_number::GRE, &[&[0x20, 0], kind, &[9; 4], packet].concat())));
            assert!(is_clear(&ip(ip_number::GRE, &[&[0, 0, 0x65, 0x58], &inner[..]].concat())));
            let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0], &inner[..]].concat();
            assert!(is_clear(&udp(NODE, PEER, 4789, &vxlan)));
            assert!(is_clear(&udp6(NODE6, NODE6, 8472, &vxlan)));
            let geneve = [&[1, 0, 0x65, 0x58, 0, 0, 1, 0, 7, 7, 7, 7], &inner[..]].concat();
            assert!(is_clear(&udp(NODE, PEER, 6081, &geneve)));
            assert!(!is_clear(&udp(NODE, PEER, 6082, &geneve)));
        }
    }

    #[test]
    fn an_error_that_quotes_a_pods_packet_is_clear_text() {
        let quoted = udp(POD, PEER, 53, b"hello");
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(NODE, PEER, 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port))
            .write(&mut frame, &quoted[14..])
            .unwrap();
        let Class::Clear(offender) = rules().classify(&frame) else { panic!("not seen") };
        assert_eq!(
            offender.to_string(),
            "192.0.2.1 > 192.0.2.2 ICMP (1), carrying 10.244.1.11 > 192.0.2.2 UDP (17)"
        );
    }

    #[test]
    fn the_canary_gives_a_masqueraded_packet_away() {
        assert!(is_clear(&udp(NODE, PEER, 80, b"...a canary of tests...")));
    }

    #[test]
    fn wireguard_is_told_by_port_and_message() {
        for kind in 1..=4 {
            let message = [kind, 0, 0, 0, 9, 9, 9, 9];
            assert_eq!(rules().classify(&udp(NODE, PEER, 51821, &message)), Class::WireGuard(kind));
            assert_eq!(rules().classify(&udp6(NODE6, NODE6, 51820, &message)), Class::WireGuard(kind));
            assert_eq!(rules().classify(&udp(NODE, PEER, 53, &message)), Class::Other);
        }
        assert_eq!(rules().classify(&udp(NODE, PEER, 51820, &[5, 0, 0, 0])), Class::Other);
        assert_eq!(rules().classify(&udp(NODE, PEER, 51820, &[4, 0, 1, 0])), Class::Other);
    }

    #[test]
    fn neighbour_discovery_is_control() {
        let solicitation = [135, 0, 0, 0, 0, 0, 0, 0];
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(NODE6, NODE6, 255)
            .write(&mut frame, ip_number::IPV6_ICMP, &solicitation)
            .unwrap();
        assert_eq!(rules().classify(&frame), Class::Control);
    }

    #[test]
    fn probes_of_paths_are_control_and_say_nothing() {
        assert_eq!(rules().classify(&udp(NODE, PEER, 51820, &[0; 250])), Class::Control);
        assert_eq!(rules().classify(&udp(NODE, PEER, 53, &[0; 250])), Class::Other);
        assert_eq!(rules().classify(&udp(NODE, PEER, 51820, &[0, 0, 0, 0, 0, 1])), Class::Other);
    }

    #[test]
    fn between_nodes_only_wireguard_where_that_is_the_rule() {
        let all = Rules { nodes: vec!["192.0.2.0/24".parse().unwrap()], ..rules() };
        let frame = udp(NODE, PEER, 53, b"");
        assert_eq!(rules().classify(&frame), Class::Other);
        assert!(matches!(all.classify(&frame), Class::Clear(_)));
        assert_eq!(all.classify(&udp(NODE, PEER, 51820, &[4, 0, 0, 0])), Class::WireGuard(4));
        assert_eq!(all.classify(&udp(NODE, [198, 51, 100, 1], 53, b"")), Class::Other);
        for machine in [[2; 6], [4; 6]] {
            let outside = Rules { outside: vec![machine], ..all.clone() };
            assert_eq!(outside.classify(&udp(POD, PEER, 53, b"")), Class::Outside);
        }
    }

    #[test]
    fn truncated_frames_do_not_panic() {
        let inner = udp6(NODE6, POD6, 53, b"hello");
        let whole = udp(NODE, PEER, 6081, &[&[0x3f; 8], &inner[..]].concat());
        for length in 0..whole.len() {
            rules().classify(&whole[..length]);
        }
    }
}
