//! What is around a packet in a packet: IP and UDP, and a header of VXLAN (RFC 7348), Geneve (RFC 8926) or the like, which
//! is repeated as it is for each segment.
//!
//! ```text
//!   │ IP │ UDP │ VXLAN │ Ethernet │ IP │ TCP │ payload, payload, …
//!   └── outer ─┘                  └── inner ─┘
//! ```
//!
//! Fields are filled in as the kernel does it (`udp_offload.c`, `__skb_udp_tunnel_segment`).

use super::checksum;
use super::layout::{Layout, Transport};
use super::vnet::{TUNNEL_CHECKSUM, Tunnel};

/// The outer packet.
pub struct Outer {
    layout: Layout,
    /// Where the inner packet begins.
    inner: usize,
    /// Of the pseudo-header without its length; `None` if UDP has no checksum, which a tunnel need not have.
    pseudo: Option<u64>,
}

impl Outer {
    /// Where the inner packet begins is taken from the header, since only who made the tunnel knows it; the caller finds
    /// there an IP packet whose TCP or UDP header is where the vnet header says, too, or refuses it. `None`: header and
    /// packet contradict each other.
    pub fn of(header: Tunnel, flags: u8, packet: &[u8]) -> Option<Self> {
        let layout = Layout::of(packet)?;
        let inner = usize::from(header.inner);
        let has_checksum = packet.get(layout.l4 + 6..layout.l4 + 8)? != [0, 0];
        let fits = layout.transport == Transport::Udp
            && layout.ipv6 == header.ipv6
            && layout.l4 == usize::from(header.outer_l4)
            && layout.payload <= inner
            // Or sums would not be of the same words.
            && (inner - layout.l4).is_multiple_of(2)
            && has_checksum == (flags & TUNNEL_CHECKSUM != 0);
        fits.then(|| Self { layout, inner, pseudo: has_checksum.then(|| layout.pseudo_sum(packet)) })
    }

    /// Where the inner packet begins.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Sets to zero in the headers what [`Outer::write`] expects to be.
    pub fn clear(&self, headers: &mut [u8]) {
        if !self.layout.ipv6 {
            headers[10..12].fill(0);
        }
        headers[self.layout.l4 + 4..self.layout.l4 + 8].fill(0);
    }

    /// Completes the outer headers of the segment of this number, which is `packet`. Its inner TCP or UDP is complete,
    /// begins at `body`, and adds up to `sum`: what is encrypted next need not be summed twice.
    pub fn write(&self, packet: &mut [u8], number: u32, body: usize, sum: u64) {
        let l4 = self.layout.l4;
        self.layout.finish_ip(packet, number);
        let len = (packet.len() - l4) as u16;
        packet[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
        if let Some(pseudo) = self.pseudo {
            let sum = checksum::add(checksum::add_number(pseudo + sum, len), &packet[l4..body]);
            packet[l4 + 6..l4 + 8].copy_from_slice(&checksum::finish_nonzero(sum));
        }
    }
}
