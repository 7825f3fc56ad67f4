//! The header in front of each packet that a TUN with IFF_VNET_HDR gives and takes (`struct virtio_net_hdr`, and behind
//! it what tunnels need: `struct virtio_net_hdr_v1_hash_tunnel`).
//!
//! Its numbers are in the byte order of the machine (`drivers/net/tun.c`, without TUNSETVNETLE), but those of a packet in
//! a tunnel in little endian (`linux/virtio_net.h`, `virtio_net_hdr_tnl_from_skb`).

/// Its length, in bytes, for TUNSETVNETHDRSZ. A kernel that knows of no tunnels leaves what is behind the first ten zero.
pub const LEN: usize = 24;

/// Flag: the checksum at `checksum_start + checksum_offset` covers only the pseudo-header yet; the rest, from
/// `checksum_start` on, is the reader's to add.
pub const NEEDS_CHECKSUM: u8 = 1;

/// Flag: the outer UDP header of a packet in a tunnel is to have a checksum, too (VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM).
pub const TUNNEL_CHECKSUM: u8 = 8;

/// What the packet is to be split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: it is one packet.
    Single,
    /// Segments of TCP over IPv4.
    Tcp4,
    /// Segments of TCP over IPv6.
    Tcp6,
    /// Datagrams of UDP, over IPv4 or IPv6.
    Udp,
}

/// The header's fields that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CHECKSUM`], and others that do not concern us.
    pub flags: u8,
    /// What it is.
    pub kind: Kind,
    /// TCP: the first segment, and it alone, has CWR set (RFC 3168, section 6.1.2).
    pub ecn: bool,
    /// Bytes of headers in front of the first segment's payload. Written as a hint; not believed when read.
    pub header_len: u16,
    /// Bytes of payload of each segment but the last, which may have less.
    pub segment: u16,
    /// Where the checksum's range begins, in bytes from the packet's start.
    pub checksum_start: u16,
    /// Where the checksum is, in bytes from `checksum_start`.
    pub checksum_offset: u16,
    /// What the packet is in, if it is to be split within another: VXLAN, Geneve.
    pub tunnel: Option<Tunnel>,
}

/// A packet of UDP around the one that is to be split; what is told beside it is of the inner one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Whether the outer packet is of IPv6.
    pub ipv6: bool,
    /// Where the outer UDP header begins, in bytes from the packet's start.
    pub outer_l4: u16,
    /// Where the inner IP header begins.
    pub inner: u16,
}

// VIRTIO_NET_HDR_GSO_*.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_TUNNEL4: u8 = 0x20;
const GSO_TUNNEL6: u8 = 0x40;
const GSO_ECN: u8 = 0x80;

impl VnetHeader {
    /// Of a packet that is complete as it is.
    pub const SINGLE: Self = Self {
        flags: 0,
        kind: Kind::Single,
        ecn: false,
        header_len: 0,
        segment: 0,
        checksum_start: 0,
        checksum_offset: 0,
        tunnel: None,
    };

    /// Reads a header. `None`: a kind of super-packet that nobody asked the kernel for.
    pub fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let little = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let tunnel = match bytes[1] & (GSO_TUNNEL4 | GSO_TUNNEL6) {
            0 => None,
            GSO_TUNNEL4 => Some(Tunnel { ipv6: false, outer_l4: little(20), inner: little(22) }),
            GSO_TUNNEL6 => Some(Tunnel { ipv6: true, outer_l4: little(20), inner: little(22) }),
            _ => return None,
        };
        let kind = match bytes[1] & !(GSO_ECN | GSO_TUNNEL4 | GSO_TUNNEL6) {
            GSO_NONE if tunnel.is_none() => Kind::Single,
            GSO_TCPV4 => Kind::Tcp4,
            GSO_TCPV6 => Kind::Tcp6,
            GSO_UDP_L4 => Kind::Udp,
            _ => return None,
        };
        let number = |at| match tunnel {
            None => u16::from_ne_bytes([bytes[at], bytes[at + 1]]),
            Some(_) => little(at),
        };
        Some(Self {
            flags: bytes[0],
            kind,
            ecn: bytes[1] & GSO_ECN != 0,
            header_len: number(2),
            segment: number(4),
            checksum_start: number(6),
            checksum_offset: number(8),
            tunnel,
        })
    }

    /// Writes the header of a packet that is in no tunnel: the kernel takes no other (`linux/virtio_net.h`,
    /// `virtio_net_hdr_tnl_to_skb`, wants an Ethernet header in front, which a TUN's packets do not have).
    pub fn encode(&self) -> [u8; LEN] {
        let kind = match self.kind {
            Kind::Single => GSO_NONE,
            Kind::Tcp4 => GSO_TCPV4,
            Kind::Tcp6 => GSO_TCPV6,
            Kind::Udp => GSO_UDP_L4,
        };
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = kind | if self.ecn { GSO_ECN } else { 0 };
        let numbers = [self.header_len, self.segment, self.checksum_start, self.checksum_offset];
        for (at, number) in numbers.into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}
