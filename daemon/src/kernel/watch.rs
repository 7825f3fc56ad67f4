//! Notices that something changed in the kernel: links, addresses, routes, rules, nftables.
//!
//! What changed is not looked at: the agent reads everything back. So a lost message (ENOBUFS) is as good as
//! a received one.

use std::io;
use std::sync::Arc;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{KernelError, hint};

/// `enum rtnetlink_groups` of linux/rtnetlink.h: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR,
/// IPV6_ROUTE, IPV6_RULE.
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// `enum nfnetlink_groups` of linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES.
const NFTABLES_GROUP: [u32; 1] = [7];

/// Notices for as long as they can be had. Whoever is refused them, or loses them, asks again.
#[derive(Default)]
pub struct Notices(Option<JoinHandle<()>>);

impl Notices {
    /// Subscribes unless that stands already; tells `changed` of every change from then on.
    pub fn subscribe(&mut self, changed: &Arc<Notify>) -> Result<(), KernelError> {
        if self.0.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        let watch = Watch::subscribe().map_err(|source| {
            let hint = hint(&source);
            KernelError::Watch { source, hint }
        })?;
        let changed = changed.clone();
        self.0 = Some(tokio::spawn(async move {
            if let Err(error) = watch.run(&changed).await {
                tracing::error!(%error, "the kernel's notices stopped; until the next look, nothing is noticed");
            }
        }));
        Ok(())
    }
}

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
