//! Splitting a super-packet into its segments, where it lies.
//!
//! ```text
//!   │ headers │ payload 0        │ payload 1        │ payload 2   │
//!   │ headers │ payload 0        │                                    first lent out
//!                     │ headers │ payload 1        │                  then, over what was lent out before
//! ```
//!
//! A segment is lent out, encrypted elsewhere, and given back; then the headers of the next are written in front of
//! its payload, over the end of the former. So no payload is copied. Fields are filled in as the kernel does it
//! (`tcp_offload.c`, `tcp_gso_segment`; `udp_offload.c`, `__udp_gso_segment`; `af_inet.c`, `inet_gso_segment`). Of a packet
//! in a tunnel, the headers are those of both packets and what stands between them ([`Outer`]).

use super::checksum;
use super::layout::{Layout, Transport};
use super::tunnel::Outer;
use super::vnet::{Kind, NEEDS_CHECKSUM, VnetHeader};

/// The longest headers that are repeated for each segment, in bytes. IPv4 and TCP have 120 at most; in IPv6 there is no
/// limit, but nobody segments behind longer ones.
const MAX_HEADERS: usize = 256;

/// Bytes behind a segment that its user may overwrite with padding.
pub const SPARE: usize = 16;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A super-packet that contradicts its vnet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a super-packet does not have the form that its header tells")]
pub struct Malformed;

/// The segments of one packet from the TUN that are still to be taken.
pub struct Segments<'a> {
    /// The packet, and behind it at least [`SPARE`] bytes.
    buffer: &'a mut [u8],
    /// Where the packet ends.
    end: usize,
    /// Where the payload of the next segment begins: in `0..end`, or `end` when there is none.
    next: usize,
    /// Payload of each segment but the last.
    segment: usize,
    /// `None` if the packet is complete as it is.
    template: Option<Template>,
    /// What stood behind the segment that is lent out, and where.
    behind: Option<(usize, [u8; SPARE])>,
}

/// The headers of all segments, and what is known about them.
struct Template {
    /// All that stands in front of the payload, `len` bytes.
    headers: [u8; MAX_HEADERS],
    len: usize,
    /// What is around the packet that is split.
    outer: Option<Outer>,
    /// Where that packet begins.
    inner: usize,
    /// Of that packet, from there on.
    layout: Layout,
    /// Of the pseudo-header without its length.
    pseudo: u64,
    /// Of the header of TCP or UDP with what changes set to zero.
    sum: u64,
    /// TCP: flags as they are in the super-packet.
    flags: u8,
    number: u32,
}

impl<'a> Segments<'a> {
    /// `buffer` holds the packet in its first `len` bytes, and at least [`SPARE`] more, which are overwritten.
    ///
    /// # Errors
    /// When header and packet contradict each other.
    pub fn new(header: VnetHeader, buffer: &'a mut [u8], len: usize) -> Result<Self, Malformed> {
        if len == 0 || len > usize::from(u16::MAX) || buffer.len() < len + SPARE {
            return Err(Malformed);
        }
        let mut segments = Self { buffer, end: len, next: 0, segment: len, template: None, behind: None };
        match header.kind {
            Kind::Single if header.flags & NEEDS_CHECKSUM != 0 => segments.complete(header)?,
            Kind::Single => {}
            Kind::Tcp4 | Kind::Tcp6 | Kind::Udp => segments.prepare(header)?,
        }
        Ok(segments)
    }

    /// A packet that is complete as it is, in the first `len` bytes of `buffer`.
    ///
    /// # Errors
    /// When it is empty or leaves less than [`SPARE`] bytes of the buffer.
    pub fn single(buffer: &'a mut [u8], len: usize) -> Result<Self, Malformed> {
        Self::new(VnetHeader::SINGLE, buffer, len)
    }

    /// Fills in the checksum of a packet that is not to be split (`skb_checksum_help`).
    fn complete(&mut self, header: VnetHeader) -> Result<(), Malformed> {
        let start = usize::from(header.checksum_start);
        let at = start + usize::from(header.checksum_offset);
        if at + 2 > self.end {
            return Err(Malformed);
        }
        // The field holds the pseudo-header's sum, and is summed with the rest.
        let sum = checksum::add(0, &self.buffer[start..self.end]);
        self.buffer[at..at + 2].copy_from_slice(&checksum::finish_nonzero(sum));
        Ok(())
    }

    fn prepare(&mut self, header: VnetHeader) -> Result<(), Malformed> {
        if header.segment == 0 {
            return Err(Malformed);
        }
        let template = Template::new(header, &self.buffer[..self.end]).ok_or(Malformed)?;
        self.segment = header.segment.into();
        self.next = template.len;
        self.template = Some(template);
        Ok(())
    }

    /// Whether all segments were taken.
    pub fn is_empty(&self) -> bool {
        self.next >= self.end
    }

    /// The packet's beginning, to see whose it is: its IP header at least, if it is an IP packet.
    pub fn head(&self) -> &[u8] {
        match &self.template {
            Some(template) => &template.headers[..template.len],
            None => &self.buffer[..self.end],
        }
    }

    /// The next segment: a buffer that begins with it, and its length. Behind it are at least [`SPARE`] bytes that
    /// may be overwritten.
    pub fn take(&mut self) -> Option<(&mut [u8], usize)> {
        if self.is_empty() {
            return None;
        }
        let Some(template) = &mut self.template else {
            self.next = self.end;
            return Some((&mut *self.buffer, self.end));
        };
        if let Some((at, saved)) = self.behind {
            self.buffer[at..at + SPARE].copy_from_slice(&saved);
        }
        let end = (self.next + self.segment).min(self.end);
        self.behind = self.buffer[end..].first_chunk().map(|saved| (end, *saved));
        let start = self.next - template.len;
        template.write(&mut self.buffer[start..end], self.segment, end == self.end);
        self.next = end;
        Some((&mut self.buffer[start..], end - start))
    }
}

impl Template {
    /// `None`: header and packet contradict each other.
    fn new(header: VnetHeader, packet: &[u8]) -> Option<Self> {
        let outer = match header.tunnel {
            Some(tunnel) => Some(Outer::of(tunnel, header.flags, packet)?),
            None => None,
        };
        let inner = outer.as_ref().map_or(0, Outer::inner);
        let layout = Layout::of(packet.get(inner..)?)?;
        let fits = match header.kind {
            Kind::Tcp4 => !layout.ipv6 && layout.transport == Transport::Tcp,
            Kind::Tcp6 => layout.ipv6 && layout.transport == Transport::Tcp,
            Kind::Udp => layout.transport == Transport::Udp,
            Kind::Single => false,
        };
        let lies = header.flags & NEEDS_CHECKSUM != 0
            && (usize::from(header.checksum_start) != inner + layout.l4
                || usize::from(header.checksum_offset) != layout.checksum_offset());
        let len = inner + layout.payload;
        if !fits || lies || len > MAX_HEADERS {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers[..len].copy_from_slice(&packet[..len]);
        if let Some(outer) = &outer {
            outer.clear(&mut headers);
        }
        let own = &mut headers[inner..len];
        let pseudo = layout.pseudo_sum(own);
        if !layout.ipv6 {
            own[10..12].fill(0);
        }
        let l4 = &mut own[layout.l4..];
        let mut flags = 0;
        l4[layout.checksum_offset()..][..2].fill(0);
        match layout.transport {
            Transport::Tcp => flags = l4[13],
            Transport::Udp => l4[4..6].fill(0),
        }
        let sum = checksum::add(0, l4);
        Some(Self { headers, len, outer, inner, layout, pseudo, sum, flags, number: 0 })
    }

    /// Writes the headers of the next segment, which is `packet`. All lengths are at most those of the super-packet,
    /// which fit into 16 bits.
    fn write(&mut self, packet: &mut [u8], segment: usize, last: bool) {
        packet[..self.len].copy_from_slice(&self.headers[..self.len]);
        let own = &mut packet[self.inner..];
        self.layout.finish_ip(own, self.number);
        let l4_len = (own.len() - self.layout.l4) as u16;
        let pseudo = checksum::add_number(self.pseudo, l4_len);
        self.write_l4(own, l4_len, pseudo, segment, last);
        if let Some(outer) = &self.outer {
            // With the pseudo-header, the inner TCP or UDP adds up to zero, so without it to what it takes to that.
            let sum = u64::from(u16::from_ne_bytes(checksum::finish(pseudo)));
            outer.write(packet, self.number, self.inner + self.layout.l4, sum);
        }
        self.number += 1;
    }

    fn write_l4(&self, packet: &mut [u8], l4_len: u16, pseudo: u64, segment: usize, last: bool) {
        let Layout { transport, l4, payload, .. } = self.layout;
        let mut sum = pseudo + self.sum;
        match transport {
            Transport::Tcp => {
                let mut flags = self.flags;
                if !last {
                    flags &= !(FIN | PSH);
                }
                if self.number > 0 {
                    flags &= !CWR;
                }
                let header = &mut packet[l4..payload];
                let first = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let sequence = first.wrapping_add(self.number.wrapping_mul(segment as u32));
                // Exchanges in the sum what is exchanged in the header; the lengths of both are even.
                sum = checksum::add_number(sum, !u16::from(self.flags));
                sum = checksum::add_number(sum, flags.into());
                sum += u64::from(!u32::from_ne_bytes(first.to_be_bytes()));
                sum += u64::from(u32::from_ne_bytes(sequence.to_be_bytes()));
                header[4..8].copy_from_slice(&sequence.to_be_bytes());
                header[13] = flags;
            }
            Transport::Udp => {
                packet[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes());
                sum = checksum::add_number(sum, l4_len);
            }
        }
        let sum = checksum::add(sum, &packet[payload..]);
        let checksum = match transport {
            Transport::Tcp => checksum::finish(sum),
            Transport::Udp => checksum::finish_nonzero(sum),
        };
        packet[l4 + self.layout.checksum_offset()..][..2].copy_from_slice(&checksum);
    }
}
