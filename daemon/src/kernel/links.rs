//! The tunnels' interfaces as netlink messages, and back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use nix::libc;
use warren_api::{Backend, names};
use warren_core::ObservedLink;

use crate::netlink::Request;

/// IFLA_INET_CONF of linux/if_link.h, and IPV4_DEVCONF_RP_FILTER of linux/ip.h.
const INET_CONF: u16 = 1;
const RP_FILTER: u16 = 8;

/// The reverse-path filter that takes packets from any interface, as long as their source has a route at all
/// (`rp_filter`, Documentation/networking/ip-sysctl.rst). The kernel takes the greater of this and the node's own,
/// so that a strict one becomes loose here and stays strict elsewhere.
pub const LOOSE: u8 = 2;

/// The one that takes packets only from where their answers would go.
const STRICT: i32 = 1;

/// A tunnel's interface, if it is one that Warren may have made.
pub fn observed(link: &LinkMessage, addresses: BTreeSet<IpAddr>) -> Option<ObservedLink> {
    let (mut kind, mut alias) = (None, "");
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                kind = infos
                    .iter()
                    .find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
            }
            LinkAttribute::IfAlias(text) => alias = text,
            _ => {}
        }
    }
    let backend = match kind? {
        InfoKind::Wireguard if alias == names::ALIAS => Backend::Kernel,
        InfoKind::Tun => Backend::Userspace,
        _ => return None,
    };
    let up = link.header.flags.contains(LinkFlags::Up);
    Some(ObservedLink { backend, mtu: mtu(link), up, loose: is_loose(link), addresses })
}

/// What an interface whose reverse-path filter is strict has itself; `common` is that of all interfaces, of which the
/// greater counts.
pub fn strict_filter(link: &LinkMessage, common: i32) -> Option<u8> {
    let own = reverse_path_filter(link);
    (own.max(common) == STRICT).then(|| own.try_into().unwrap_or_default())
}

/// Whether an interface's own reverse-path filter is loose.
pub fn is_loose(link: &LinkMessage) -> bool {
    reverse_path_filter(link) == i32::from(LOOSE)
}

/// The reverse-path filter that all interfaces have at least; none where that cannot be read.
pub fn common_filter() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

fn reverse_path_filter(link: &LinkMessage) -> i32 {
    let inet = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => families
            .iter()
            .find_map(|family| if let AfSpecUnspec::Inet(inet) = family { Some(inet) } else { None }),
        _ => None,
    });
    let conf = inet.into_iter().flatten().find_map(|spec| match spec {
        AfSpecInet::DevConf(conf) => Some(conf.rp_filter),
        _ => None,
    });
    conf.unwrap_or_default()
}

/// An interface's MTU.
pub fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

/// What sets an interface's MTU, makes its reverse-path filter loose, and brings it up.
pub fn up(index: u32, mtu: u32) -> Request {
    // `struct ifinfomsg`: family, type, index, flags, and which of the flags to change.
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let flag = (libc::IFF_UP as u32).to_ne_bytes();
    header[8..12].copy_from_slice(&flag);
    header[12..16].copy_from_slice(&flag);
    let mut request = Request::new(libc::RTM_SETLINK, 0, &header);
    request.put(libc::IFLA_MTU, &mtu.to_ne_bytes());
    put_filter(&mut request, LOOSE);
    request
}

/// What sets an interface's reverse-path filter.
pub fn filter(index: u32, filter: u8) -> Request {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut request = Request::new(libc::RTM_SETLINK, 0, &header);
    put_filter(&mut request, filter);
    request
}

fn put_filter(request: &mut Request, filter: u8) {
    request.nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(libc::AF_INET as u16, |inet| {
            inet.nest(INET_CONF, |conf| conf.put(RP_FILTER, &u32::from(filter).to_ne_bytes()));
        });
    });
}
