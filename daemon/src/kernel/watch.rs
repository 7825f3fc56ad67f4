//! Notices that something changed in the kernel: links, addresses, routes, rules, nftables.
//!
//! What changed is not looked at: the agent reads everything back. So a lost message (ENOBUFS) is as good as
//! a received one.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::sync::Notify;

/// `enum rtnetlink_groups` of linux/rtnetlink.h: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR,
/// IPV6_ROUTE, IPV6_RULE.
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// `enum nfnetlink_groups` of linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES.
const NFTABLES_GROUP: [u32; 1] = [7];

/// The subscriptions; they stand from the moment this exists, so that nothing is missed between the first
/// look and the first change.
pub struct Watch {
    route: TokioSocket,
    nftables: TokioSocket,
}

impl Watch {
    /// Subscribes in the current network namespace.
    pub fn subscribe() -> io::Result<Self> {
        Ok(Self {
            route: subscribe(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            nftables: subscribe(NETLINK_NETFILTER, &NFTABLES_GROUP)?,
        })
    }

    /// Tells `changed` of every change, for as long as the program runs.
    pub async fn run(mut self, changed: &Notify) -> io::Result<()> {
        loop {
            tokio::select! {
                result = message(&mut self.route) => result?,
                result = message(&mut self.nftables) => result?,
            }
            changed.notify_one();
        }
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(socket)
}

/// Waits for one message, which may be cut off or lost: that there was one is all that counts.
async fn message(socket: &mut TokioSocket) -> io::Result<()> {
    match socket.recv(&mut &mut [0u8; 64][..]).await {
        Err(error) if error.raw_os_error() != Some(nix::libc::ENOBUFS) => Err(error),
        _ => Ok(()),
    }
}
