//! Where the headers of a TCP or UDP packet are: read from the packet, every length checked.

use super::checksum;

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
// IPv6 extension headers that may stand before them (RFC 8200, section 4.1). A fragment is no whole segment.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Offsets into a packet, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub ipv6: bool,
    pub transport: Transport,
    /// Where the header of TCP or UDP begins.
    pub l4: usize,
    /// Where what it carries begins; not beyond the packet's end.
    pub payload: usize,
}

impl Layout {
    /// `None`: neither TCP nor UDP, a fragment, or cut short.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (ipv6, protocol, l4) = match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk::<20>()?;
                let l4 = usize::from(header[0] & 15) * 4;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
                (!fragment && l4 >= 20).then_some((false, header[9], l4))?
            }
            6 => {
                let (protocol, l4) = skip_extensions(packet, *packet.get(6)?, 40)?;
                (true, protocol, l4)
            }
            _ => return None,
        };
        let (transport, header_len) = match protocol {
            TCP => {
                let header_len = usize::from(packet.get(l4 + 12)? >> 4) * 4;
                (header_len >= 20).then_some((Transport::Tcp, header_len))?
            }
            UDP => (Transport::Udp, 8),
            _ => return None,
        };
        let payload = l4 + header_len;
        (payload <= packet.len()).then_some(Self { ipv6, transport, l4, payload })
    }

    /// Where source and destination addresses stand, one behind the other.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        if self.ipv6 { 8..40 } else { 12..20 }
    }

    /// Where the checksum of TCP or UDP stands, in bytes from `l4`.
    pub fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// The sum of the pseudo-header but for its length (RFC 9293, section 3.1; RFC 8200, section 8.1).
    pub fn pseudo_sum(&self, packet: &[u8]) -> u64 {
        let protocol = match self.transport {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        checksum::add_number(checksum::add(0, &packet[self.addresses()]), protocol.into())
    }

    /// Fills in what differs between the IP headers of segments, in that of the segment of this number, which is all of
    /// `packet`, at most 65,535 bytes: the length; in IPv4 the identification, counted up from the one that stands there,
    /// and the checksum, where 0 stands.
    pub fn finish_ip(&self, packet: &mut [u8], number: u32) {
        let total = packet.len();
        if self.ipv6 {
            packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            return;
        }
        packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(number as u16);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let checksum = checksum::finish(checksum::add(0, &packet[..self.l4]));
        packet[10..12].copy_from_slice(&checksum);
    }
}

fn skip_extensions(packet: &[u8], mut protocol: u8, mut at: usize) -> Option<(u8, usize)> {
    while matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION) {
        let [next, units] = packet.get(at..)?.first_chunk().copied()?;
        protocol = next;
        at += 8 + usize::from(units) * 8;
    }
    (at <= packet.len()).then_some((protocol, at))
}
