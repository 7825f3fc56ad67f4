//! Wrong checksums in, wrong checksums out: the tunnel repairs nothing.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use warren_testkit::netns::Netns;

use super::site::{Family, ONE, Site};

/// Packets of each kind; every third has a wrong checksum.
const COUNT: u16 = 1500;
/// So many are under way at once: some are coalesced, and none is lost for want of room.
const BURST: u16 = 30;
/// A number, then always the same.
const PAYLOAD: usize = 102;
const SOURCE_PORT: u16 = 0x1234;
const PORT: u16 = 5001;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Udp,
    Tcp,
}

/// Every packet arrives, in order, and the wrong ones as they were: the kernel of the other end drops and counts them.
pub fn wrong() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    for (from, to) in site.left.inner().into_iter().zip(site.right.inner()) {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            one_kind(&site, from, to, protocol).with_context(|| format!("{protocol:?} to {to}"))?;
        }
    }
    Ok(())
}

fn one_kind(site: &Site, from: IpAddr, to: IpAddr, protocol: Protocol) -> Result<()> {
    let raw = |netns: &Netns| netns.run(|| protocol.socket(to))?;
    let (sender, receiver) = (raw(&site.left.netns)?, raw(&site.right.netns)?);
    setsockopt(&receiver, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    let before = protocol.errors(&site.right.netns, to)?;
    // A raw socket takes no port.
    let address = SockaddrStorage::from(std::net::SocketAddr::new(to, 0));
    let (mut next, mut packets) = (0, 0);
    for number in 0..COUNT {
        sendto(sender.as_raw_fd(), &protocol.packet(from, to, number), &address, MsgFlags::empty())?;
        while number % BURST == BURST - 1 && next <= number {
            packets += 1;
            next = protocol.expect(&receiver, from, to, next)?;
        }
    }
    let errors = protocol.errors(&site.right.netns, to)? - before;
    println!(
        "{protocol:?} to {to}: {next} in order in {packets} packets, {errors} of them wrong as they were"
    );
    ensure!(errors == u64::from(COUNT / 3), "{errors} wrong checksums arrived");
    ensure!(packets < usize::from(COUNT), "nothing was coalesced, so nothing was tested");
    Ok(())
}

fn is_wrong(number: u16) -> bool {
    number % 3 == 2
}

fn payload(number: u16) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(PAYLOAD, 7);
    payload
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }

    /// A raw socket, for which the kernel writes the IP header and nothing else (raw(7)).
    fn socket(self, family: IpAddr) -> Result<OwnedFd> {
        let family = if family.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let protocol = match self {
            Self::Udp => SockProtocol::Udp,
            Self::Tcp => SockProtocol::Tcp,
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
        Ok(socket)
    }

    /// What is behind the IP header.
    fn packet(self, from: IpAddr, to: IpAddr, number: u16) -> Vec<u8> {
        let ports = [SOURCE_PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
        let (mut packet, at) = match self {
            Self::Udp => ([&ports[..], &(8 + PAYLOAD as u16).to_be_bytes(), &[0, 0]].concat(), 6),
            Self::Tcp => {
                // Sequence and acknowledgement; 5 words of header, ACK, a window; checksum, urgent pointer.
                let sequence = (u32::from(number) * PAYLOAD as u32 + 1).to_be_bytes();
                let rest = [0, 0, 0, 1, 5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0];
                ([&ports[..], &sequence, &rest].concat(), 16)
            }
        };
        packet.extend(payload(number));
        let sum = self.checksum(from, to, &packet) ^ if is_wrong(number) { 0x100 } else { 0 };
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// RFC 1071, of the pseudo-header and the packet.
    fn checksum(self, from: IpAddr, to: IpAddr, packet: &[u8]) -> u16 {
        let mut summed = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            _ => unreachable!("both are of one family"),
        };
        summed.extend([0, self.number()]);
        summed.extend((packet.len() as u16).to_be_bytes());
        summed.extend(packet);
        let sum: u64 = summed.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        !((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// Receives a packet, which may be a super-packet, and sees that its payloads are those from `next` on. Returns the
    /// number behind.
    fn expect(self, receiver: &OwnedFd, from: IpAddr, to: IpAddr, mut next: u16) -> Result<u16> {
        let mut buffer = vec![0; 1 << 16];
        let packet = loop {
            let len = recv(receiver.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("waiting")?;
            // Over IPv4 a raw socket shows the IP header, too.
            let packet = &buffer[if to.is_ipv4() { 20 } else { 0 }..len];
            if packet[..2] == SOURCE_PORT.to_be_bytes() && packet[2..4] == PORT.to_be_bytes() {
                break packet;
            }
        };
        let payloads = &packet[if self == Self::Udp { 8 } else { 20 }..];
        let single = payloads.len() == PAYLOAD;
        for found in payloads.chunks(PAYLOAD) {
            ensure!(found == payload(next), "another payload came than {next}");
            if is_wrong(next) {
                ensure!(single && packet == self.packet(from, to, next), "{next} is not as wrong as it was");
            }
            next += 1;
        }
        Ok(next)
    }

    /// Packets with a wrong checksum that the kernel has counted (netstat(8), InCsumErrors).
    fn errors(self, netns: &Netns, family: IpAddr) -> Result<u64> {
        let read =
            |file: &str| netns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
        if self == Self::Udp && family.is_ipv6() {
            let text = read("snmp6")??;
            let line = text.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors"));
            return line.context("no such counter")?.trim().parse().context("no number");
        }
        // TCP has the same counters for both families.
        let text = read("snmp")??;
        let prefix = if self == Self::Udp { "Udp: " } else { "Tcp: " };
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
        let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
        let at = names.split(' ').position(|name| name == "InCsumErrors").context("no such counter")?;
        values.split(' ').nth(at).context("no value")?.parse().context("no number")
    }
}
