//! Cryptokey routing (whitepaper section 2): which peer an inner address belongs to.
//!
//! One table for the whole device, longest prefix first. A network belongs to one peer only: giving it to
//! another takes it from the first, as in the kernel's `allowedips.c`. Beside the trie stands each peer's
//! own set, so that replacing or listing one peer's networks does not walk everybody's.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::peer::{Peer, PublicKey};

/// The device-wide table of allowed IPs.
#[derive(Default)]
pub struct AllowedIps {
    v4: PrefixMap<Ipv4Net, Arc<Peer>>,
    v6: PrefixMap<Ipv6Net, Arc<Peer>>,
    by_peer: HashMap<PublicKey, BTreeSet<IpNet>>,
}

impl AllowedIps {
    /// The peer whose network is the longest match for `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).map(|(_, peer)| peer),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).map(|(_, peer)| peer),
        }
    }

    /// Gives `net` to `peer`, taking it from whoever had it.
    pub fn insert(&mut self, net: IpNet, peer: &Arc<Peer>) {
        let net = net.trunc();
        let former = match net {
            IpNet::V4(net) => self.v4.insert(net, peer.clone()),
            IpNet::V6(net) => self.v6.insert(net, peer.clone()),
        };
        if let Some(former) = former {
            self.forget(&former.public_key, net);
        }
        self.by_peer.entry(peer.public_key).or_default().insert(net);
    }

    /// Takes `net` from the peer, if it has it.
    pub fn remove(&mut self, net: IpNet, peer: &PublicKey) {
        let net = net.trunc();
        if self.forget(peer, net) {
            self.unroute(net);
        }
    }

    /// Takes all networks from the peer.
    pub fn remove_all(&mut self, peer: &PublicKey) {
        for net in self.by_peer.remove(peer).unwrap_or_default() {
            self.unroute(net);
        }
    }

    /// The networks of one peer, in order.
    pub fn of(&self, peer: &PublicKey) -> impl Iterator<Item = IpNet> {
        self.by_peer.get(peer).into_iter().flatten().copied()
    }

    fn unroute(&mut self, net: IpNet) {
        match net {
            IpNet::V4(net) => drop(self.v4.remove(&net)),
            IpNet::V6(net) => drop(self.v6.remove(&net)),
        }
    }

    /// Takes `net` out of the peer's own set; says whether it was there.
    fn forget(&mut self, peer: &PublicKey, net: IpNet) -> bool {
        let Some(nets) = self.by_peer.get_mut(peer) else { return false };
        let had = nets.remove(&net);
        if nets.is_empty() {
            self.by_peer.remove(peer);
        }
        had
    }
}

/// The addresses of an IP packet, as far as its first bytes tell. `None` if it is no IP packet.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => Some(IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).ok()?)),
        6 if packet.len() >= 40 => Some(IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).ok()?)),
        _ => None,
    }
}

/// The length of an IP packet with padding behind it, and its source. `None` if it is no IP packet, or cut short.
pub fn source(padded: &[u8]) -> Option<(usize, IpAddr)> {
    let number = |at: usize| usize::from(u16::from_be_bytes([padded[at], padded[at + 1]]));
    let (len, source) = match padded.first()? >> 4 {
        4 if padded.len() >= 20 => (number(2), <[u8; 4]>::try_from(&padded[12..16]).ok()?.into()),
        6 if padded.len() >= 40 => (40 + number(4), <[u8; 16]>::try_from(&padded[8..24]).ok()?.into()),
        _ => return None,
    };
    (20..=padded.len()).contains(&len).then_some((len, source))
}
