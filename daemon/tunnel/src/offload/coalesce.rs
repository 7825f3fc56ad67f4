//! Coalescing packets into super-packets, under the rules by which the kernel does it (`tcp_offload.c`,
//! `tcp_gro_receive`; `udp_offload.c`, `udp_gro_receive_segment`; `gro.c`, `inet_gro_receive`).
//!
//! Packets come in the order in which they were received, and stay where they are: a super-packet is a list of
//! pieces. Super-packets leave in the order of their first packets. A packet only ever joins the newest group of its
//! flow, and none joins a group after which a packet of the same flow, or one of which the flow is not known, stands
//! on its own. So no packet of a flow overtakes another.

use std::io::IoSlice;

use super::checksum;
use super::layout::{Layout, Transport};
use super::vnet::{Kind, LEN, NEEDS_CHECKSUM, VnetHeader};

/// Most packets in one super-packet: the kernel refuses more of UDP (UDP_MAX_SEGMENTS), and more than 45 of the usual
/// size do not fit anyway.
const MAX_SEGMENTS: usize = 64;
/// Most pieces of what is written: headers, and the payload of each packet.
pub const MAX_PARTS: usize = 1 + MAX_SEGMENTS;
/// Flows that are told apart at once. One more pushes out the one that was idle longest: what comes of that begins a
/// new group.
const FLOWS: usize = 16;
/// vnet header, IP without options, TCP with all of them.
const MAX_HEADERS: usize = LEN + 40 + 60;

// TCP flags, and their byte in the header.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;
const FLAGS: usize = 13;

/// Don't Fragment, in the seventh byte of an IPv4 header.
const DF: u8 = 0x40;

/// Groups the packets of one batch after the other. Its memory grows to the largest batch, and is used again.
pub struct Coalescer {
    tcp: bool,
    udp: bool,
    groups: Vec<Group>,
    links: Vec<Link>,
    /// The newest groups of the flows that were seen last, the most recent one first.
    flows: Vec<usize>,
}

/// Packets that leave as one.
struct Group {
    /// The first packet and the last one, by number.
    first: usize,
    last: usize,
    count: usize,
    /// Bytes of the super-packet.
    len: usize,
    /// Of the first packet, if that could be told.
    layout: Option<Layout>,
    /// What the next packet has to continue; `None` if nothing more may join.
    open: Option<Open>,
}

#[derive(Clone, Copy)]
struct Open {
    /// Payload of the first packet, in bytes.
    segment: usize,
    /// TCP: the sequence number behind the last packet.
    sequence: u32,
    /// IPv4: identification of the last packet, and its step, once there are two.
    id: u16,
    step: Option<u16>,
}

/// A packet within its group.
struct Link {
    /// Where its payload begins.
    payload: usize,
    next: Option<usize>,
}

impl Coalescer {
    /// Of what the kernel takes super-packets.
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self { tcp, udp, groups: Vec::new(), links: Vec::new(), flows: Vec::with_capacity(FLOWS + 1) }
    }

    /// Calls `write` for each super-packet, and for each packet that stands on its own, with all its bytes: vnet header
    /// and packet, in [`MAX_PARTS`] pieces at most; and with the number of packets it carries. `write` says whether it
    /// was taken: if not, the packets of a super-packet are written one by one.
    pub fn coalesce(&mut self, packets: &[&[u8]], mut write: impl FnMut(&[IoSlice<'_>], usize) -> bool) {
        self.groups.clear();
        self.links.clear();
        self.flows.clear();
        for (number, packet) in packets.iter().enumerate() {
            self.add(packets, number, packet);
        }
        for group in &self.groups {
            self.write(packets, group, &mut write);
        }
    }

    fn add(&mut self, packets: &[&[u8]], number: usize, packet: &[u8]) {
        let Some(layout) = Layout::of(packet) else {
            // Of whatever flow it is, nothing that comes later may leave before it.
            self.flows.clear();
            return self.push(number, packet.len(), None, None);
        };
        let open = self.open(&layout, packet);
        let newest = self.newest(packets, &layout, packet);
        if let (Some(newest), Some(open)) = (newest, open)
            && let Some(joined) = join(&self.groups[newest], packets, packet, open)
        {
            let group = &mut self.groups[newest];
            self.links[group.last].next = Some(number);
            self.links.push(Link { payload: layout.payload, next: None });
            group.last = number;
            group.count += 1;
            group.len += packet.len() - layout.payload;
            group.open = joined;
            return;
        }
        if newest.is_some() {
            self.flows.remove(0);
        }
        self.flows.insert(0, self.groups.len());
        self.flows.truncate(FLOWS);
        let open = open.filter(|_| !is_pushed(&layout, packet));
        self.push(number, packet.len(), Some(layout), open);
    }

    fn push(&mut self, number: usize, len: usize, layout: Option<Layout>, open: Option<Open>) {
        self.groups.push(Group { first: number, last: number, count: 1, len, layout, open });
        self.links.push(Link { payload: layout.map_or(0, |layout| layout.payload), next: None });
    }

    /// The newest group of the packet's flow, which becomes the first of `flows`.
    fn newest(&mut self, packets: &[&[u8]], layout: &Layout, packet: &[u8]) -> Option<usize> {
        let at = self.flows.iter().position(|group| {
            let group = &self.groups[*group];
            group
                .layout
                .as_ref()
                .is_some_and(|first| is_same_flow(first, packets[group.first], layout, packet))
        })?;
        self.flows[..=at].rotate_right(1);
        self.flows.first().copied()
    }

    /// What continues this packet, if it may be coalesced at all: it is whole, and its checksums are right.
    fn open(&self, layout: &Layout, packet: &[u8]) -> Option<Open> {
        let l4 = &packet[layout.l4..];
        let plain = if layout.ipv6 {
            layout.l4 == 40 && usize::from(number(packet, 4)) == packet.len() - 40
        } else {
            layout.l4 == 20
                && usize::from(number(packet, 2)) == packet.len()
                && checksum::is_right(checksum::add(0, &packet[..20]))
        };
        let segment = packet.len() - layout.payload;
        if !plain || segment == 0 || packet.len() > usize::from(u16::MAX) {
            return None;
        }
        let sequence = match layout.transport {
            Transport::Tcp if self.tcp && l4[FLAGS] & (SYN | RST | URG | ACK) == ACK => {
                u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]).wrapping_add(segment as u32)
            }
            // Without a checksum it would get one when it is split.
            Transport::Udp if self.udp && number(l4, 6) != 0 && usize::from(number(l4, 4)) == l4.len() => 0,
            _ => return None,
        };
        let sum = checksum::add_number(layout.pseudo_sum(packet), l4.len() as u16);
        let id = if layout.ipv6 { 0 } else { number(packet, 4) };
        checksum::is_right(checksum::add(sum, l4)).then_some(Open { segment, sequence, id, step: None })
    }

    fn write(&self, packets: &[&[u8]], group: &Group, write: &mut impl FnMut(&[IoSlice<'_>], usize) -> bool) {
        let taken = match group.layout {
            Some(layout) if group.count > 1 => {
                let mut headers = [0; MAX_HEADERS];
                let headers = &mut headers[..LEN + layout.payload];
                write_headers(headers, &layout, packets[group.first], packets[group.last], group.len);
                let mut parts = [IoSlice::new(&[]); MAX_PARTS];
                parts[0] = IoSlice::new(headers);
                for (part, number) in parts[1..].iter_mut().zip(self.members(group)) {
                    *part = IoSlice::new(&packets[number][self.links[number].payload..]);
                }
                write(&parts[..=group.count], group.count)
            }
            _ => false,
        };
        if !taken {
            let header = VnetHeader::SINGLE.encode();
            for number in self.members(group) {
                write(&[IoSlice::new(&header), IoSlice::new(packets[number])], 1);
            }
        }
    }

    /// The packets of a group, by number, in their order.
    fn members(&self, group: &Group) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(group.first), |number| self.links[*number].next)
    }
}

/// How the group goes on if `packet`, which alone would go on as `own`, joins it. `None`: it does not belong there.
fn join(group: &Group, packets: &[&[u8]], packet: &[u8], own: Open) -> Option<Option<Open>> {
    let (open, layout, first) = (group.open?, group.layout?, packets[group.first]);
    let fits = group.count < MAX_SEGMENTS
        && own.segment <= open.segment
        && group.len + own.segment <= usize::from(u16::MAX);
    if !fits || !continues(&layout, first, packet) {
        return None;
    }
    if layout.transport == Transport::Tcp && own.sequence != open.sequence.wrapping_add(own.segment as u32) {
        return None;
    }
    let step = own.id.wrapping_sub(open.id);
    // Identifications count up, as they do when the group is split. Where nothing may be fragmented they mean nothing
    // (RFC 6864, section 4.1), and those of many senders stay the same.
    let counts = layout.ipv6 || step == 1 || (step == 0 && first[6] & DF != 0);
    if !counts || open.step.is_some_and(|before| before != step) {
        return None;
    }
    let ends = own.segment < open.segment || is_pushed(&layout, packet);
    Some((!ends).then_some(Open { segment: open.segment, step: Some(step), ..own }))
}

/// Whether all that has to be the same in the headers of one super-packet is the same; its flow is.
fn continues(layout: &Layout, first: &[u8], packet: &[u8]) -> bool {
    let ip = if layout.ipv6 {
        // Class, flow label; hop limit.
        first[..4] == packet[..4] && first[7] == packet[7]
    } else {
        // Service; flags; time to live.
        first[1] == packet[1] && first[6..9] == packet[6..9]
    };
    // Both have the layout without IP options, or they would not be here. Length and flags of TCP may differ.
    let l4 = match layout.transport {
        Transport::Udp => true,
        Transport::Tcp => {
            let flags = |packet: &[u8]| packet[layout.l4 + FLAGS];
            let same =
                |from: usize, to: usize| packet.get(from..to).is_some_and(|part| *part == first[from..to]);
            // Acknowledgement, header length; window; urgent pointer, options.
            flags(first) & !CWR == flags(packet) & !(PSH | FIN)
                && same(layout.l4 + 8, layout.l4 + FLAGS)
                && same(layout.l4 + 14, layout.l4 + 16)
                && same(layout.l4 + 18, layout.payload)
        }
    };
    ip && l4
}

fn is_same_flow(a: &Layout, first: &[u8], b: &Layout, packet: &[u8]) -> bool {
    a.ipv6 == b.ipv6
        && a.transport == b.transport
        && first[a.l4..a.l4 + 4] == packet[b.l4..b.l4 + 4]
        && first[a.addresses()] == packet[b.addresses()]
}

/// Whether the receiver is to have it at once: nothing is put behind it.
fn is_pushed(layout: &Layout, packet: &[u8]) -> bool {
    layout.transport == Transport::Tcp && packet[layout.l4 + FLAGS] & (PSH | FIN) != 0
}

/// vnet header and headers of a super-packet of `len` bytes.
fn write_headers(out: &mut [u8], layout: &Layout, first: &[u8], last: &[u8], len: usize) {
    let Layout { ipv6, transport, l4, payload } = *layout;
    let kind = match (transport, ipv6) {
        (Transport::Udp, _) => Kind::Udp,
        (Transport::Tcp, false) => Kind::Tcp4,
        (Transport::Tcp, true) => Kind::Tcp6,
    };
    let vnet = VnetHeader {
        flags: NEEDS_CHECKSUM,
        kind,
        ecn: transport == Transport::Tcp && first[l4 + FLAGS] & CWR != 0,
        header_len: payload as u16,
        segment: (first.len() - payload) as u16,
        checksum_start: l4 as u16,
        checksum_offset: layout.checksum_offset() as u16,
        tunnel: None,
    };
    out[..LEN].copy_from_slice(&vnet.encode());
    let packet = &mut out[LEN..];
    packet.copy_from_slice(&first[..payload]);
    // At most 65,535, see `join`.
    if ipv6 {
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    } else {
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[10..12].fill(0);
        let checksum = checksum::finish(checksum::add(0, &packet[..20]));
        packet[10..12].copy_from_slice(&checksum);
    }
    let l4_len = (len - l4) as u16;
    match transport {
        Transport::Tcp => packet[l4 + FLAGS] |= last[l4 + FLAGS] & (PSH | FIN),
        Transport::Udp => packet[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes()),
    }
    let sum = checksum::add_number(layout.pseudo_sum(packet), l4_len);
    packet[l4 + layout.checksum_offset()..][..2].copy_from_slice(&checksum::fold(sum));
}

/// A number of 16 bits in network order.
fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
