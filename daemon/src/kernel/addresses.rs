//! The interfaces' addresses as netlink messages, and back.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use nix::libc;

use crate::netlink::Request;

/// What gives an interface the address of a single host, also where it has it.
pub fn addition(index: u32, address: IpAddr) -> Request {
    let mut message = message(index, address);
    message.attributes.push(AddressAttribute::Address(address));
    // A tunnel has nobody to ask whether an address is taken (RFC 4862, section 5.4).
    message.header.flags |= AddressHeaderFlags::Nodad;
    Request::of(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &message)
}

/// What takes it away.
pub fn removal(index: u32, address: IpAddr) -> Request {
    Request::of(libc::RTM_DELADDR, 0, &message(index, address))
}

fn message(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    (message.header.family, message.header.prefix_len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes.push(AddressAttribute::Local(address));
    message
}

/// An interface's own address; on point-to-point links `Address` is the other end's.
pub fn own(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

/// Whether it is one that the kernel draws for each link.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
