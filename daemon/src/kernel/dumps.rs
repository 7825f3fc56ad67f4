//! Links, addresses and rules, as the kernel lists them. What changes while it is listed is listed again
//! ([`Socket::dump`]): the crate `rtnetlink` would take an interrupted list, in which any entry may be missing, for a whole
//! one.

use std::io;

use netlink_packet_core::{DecodeError, Parseable};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::rule::RuleMessage;
use nix::libc;
use warren_core::Family;

use crate::netlink::{Request, Socket, patiently};

/// All interfaces.
pub fn links(socket: &mut Socket) -> io::Result<Vec<LinkMessage>> {
    // `struct ifinfomsg`.
    list(socket, libc::RTM_GETLINK, &[0; 16])
}

/// The addresses of all interfaces.
pub fn addresses(socket: &mut Socket) -> io::Result<Vec<AddressMessage>> {
    // `struct ifaddrmsg`.
    list(socket, libc::RTM_GETADDR, &[0; 8])
}

/// The rules of a family.
pub fn rules(socket: &mut Socket, family: Family) -> io::Result<Vec<RuleMessage>> {
    // `struct fib_rule_hdr`, which begins with the family.
    let mut header = [0; 12];
    header[0] = match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    };
    list(socket, libc::RTM_GETRULE, &header)
}

fn list<T: Parseable<[u8]>>(socket: &mut Socket, kind: u16, header: &[u8]) -> io::Result<Vec<T>> {
    let each = |found: &mut Vec<Result<T, DecodeError>>, message: &[u8]| found.push(T::parse(message));
    let mut request = Request::new(kind, 0, header);
    let found = patiently(|| socket.dump(&mut request, each))?;
    found.into_iter().collect::<Result<_, _>>().map_err(io::Error::other)
}
