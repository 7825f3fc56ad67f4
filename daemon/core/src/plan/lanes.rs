//! Lanes: the parallel tunnels between this node and each other.
//!
//! Lane i of a node is an interface of its own with the node's key, on port + i. A pair uses the smaller of the two
//! announced counts. A change of the count loses nothing, since what a lane is used for follows from what the tunnels
//! report:
//!
//! - A lane carries packets to a peer once their handshake on it proved it; until then others do, the first in any
//!   case. So does one that is cut off later: it falls silent, and is left.
//! - A lane that is used no more goes on receiving for as long as its sessions live, without keepalives that would
//!   keep them alive, since the other end may learn of the change later.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use warren_api::{PublicKey, names};

use super::KEEPALIVE;
use crate::claims::{Local, Peer};
use crate::desired::{Tunnel, TunnelPeer};
use crate::nets;
use crate::snapshot::Own;

/// The own lanes, and what stands of them.
pub(super) struct Lanes<'a> {
    own: &'a Own,
    /// All the interfaces there may be, by the number of their lane.
    interfaces: Vec<Arc<str>>,
    /// The peers whose sessions live, by interface.
    alive: &'a BTreeMap<Arc<str>, BTreeSet<PublicKey>>,
    /// The lists of interfaces that routes share, by the bits of their lanes.
    lists: RefCell<BTreeMap<u32, Arc<[Arc<str>]>>>,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(own: &'a Own, alive: &'a BTreeMap<Arc<str>, BTreeSet<PublicKey>>) -> Self {
        let interfaces = (0..names::MAX_LANES).map(|lane| names::interface(own.epoch, lane).into());
        Self { own, interfaces: interfaces.collect(), alive, lists: RefCell::default() }
    }

    /// How many lanes this node and a peer share.
    fn shared(&self, peer: &Peer) -> u8 {
        self.own.lanes.min(peer.lanes).clamp(1, names::MAX_LANES)
    }

    fn is_alive(&self, lane: u8, peer: &Peer) -> bool {
        let alive = self.alive.get(&self.interfaces[usize::from(lane)]);
        alive.is_some_and(|alive| alive.contains(&peer.public_key))
    }

    /// The interfaces by which packets go to a peer.
    pub(super) fn towards(&self, peer: &Peer) -> Arc<[Arc<str>]> {
        let proven = (0..self.shared(peer)).filter(|lane| self.is_alive(*lane, peer));
        let bits = proven.fold(0u32, |bits, lane| bits | 1 << lane);
        let bits = if bits == 0 { 1 } else { bits };
        let list = || {
            let used = self.interfaces.iter().enumerate().filter(|(lane, _)| bits >> lane & 1 == 1);
            used.map(|(_, interface)| interface.clone()).collect()
        };
        self.lists.borrow_mut().entry(bits).or_insert_with(list).clone()
    }

    /// What should stand of each lane.
    pub(super) fn tunnels(
        &self,
        local: &Local<'_>,
        peers: &[Peer],
        mtu: u32,
        fwmark: u32,
    ) -> BTreeMap<Arc<str>, Tunnel> {
        let mut tunnels = BTreeMap::new();
        for lane in 0..names::MAX_LANES {
            let ours = lane < self.own.lanes.max(1);
            let keepalive = |peer: &Peer| match lane < self.shared(peer) {
                true => Some(KEEPALIVE),
                false => self.is_alive(lane, peer).then_some(0),
            };
            let here = peers.iter().filter_map(|peer| Some((peer, keepalive(peer)?)));
            let peers: BTreeMap<_, _> =
                here.map(|(peer, keepalive)| (peer.public_key, tunnel_peer(peer, lane, keepalive))).collect();
            if !ours && peers.is_empty() {
                continue;
            }
            // On every lane: from an interface without an address, the reverse-path filter lets nothing pass but what
            // would be answered there (`__fib_validate_source` in net/ipv4/fib_frontend.c), and the other end may use
            // a lane before this one does.
            let addresses = local.pod_cidrs.iter().map(|cidr| cidr.network());
            let tunnel = Tunnel {
                backend: self.own.backend,
                mtu,
                listen_port: self.own.port.saturating_add(lane.into()),
                fwmark,
                public_key: self.own.public_key,
                addresses: addresses.collect(),
                peers,
            };
            tunnels.insert(self.interfaces[usize::from(lane)].clone(), tunnel);
        }
        tunnels
    }
}

fn tunnel_peer(peer: &Peer, lane: u8, keepalive: u16) -> TunnelPeer {
    let addresses = peer.addresses.iter().copied().map(nets::host);
    let port = peer.endpoint.port().saturating_add(lane.into());
    TunnelPeer {
        endpoint: SocketAddr::new(peer.endpoint.ip(), port),
        allowed_ips: peer.pod_cidrs.iter().copied().chain(addresses).collect(),
        keepalive,
    }
}
