//! From a change of a device to the messages that make it, as values. Pure.
//!
//! A message holds a limited number of bytes, so a change may take several, and one peer may be spread over some of
//! them. Whatever is sent, and wherever it breaks off:
//!
//! - Nothing is replaced wholesale. Peers and allowed IPs that are not named stay as they are, with their sessions
//!   and endpoints; the flags that replace are never set.
//! - First all additions, in the order of the change, then what leaves peers that stay. Adding an allowed IP that
//!   another peer has moves it: the kernel replaces one pointer (`add` in `drivers/net/wireguard/allowedips.c`),
//!   so every packet finds the old peer or the new one.
//! - A message that is sent twice does what it does once.
//!
//! How an allowed IP leaves a peer that stays depends on the kernel; see [`Removal`].

use std::collections::HashMap;
use std::net::SocketAddr;

use ipnet::{IpNet, Ipv4Net};
use warren_api::PublicKey;
use warren_core::{DeviceChange, PeerChange};

/// How long a message may be, in bytes. An attribute ends at 64 KiB (`nla_len` has 16 bits), and all peers of a
/// message are in one. Half of that is about a thousand IPv4 networks, or 150 new peers of four, during which the
/// kernel holds the lock that all changes of the node's network wait for.
pub const LIMIT: usize = 32 << 10;

/// The most that a message has besides peers: the headers of netlink (16) and generic netlink (4), and the attributes
/// for interface (8), private key (36), port (8), mark (8) and the list of peers (4).
const FIXED: usize = 16 + 4 + 8 + 36 + 8 + 8 + 4;

/// What a message says of a peer besides endpoint, keepalive and the allowed IPs themselves: the attribute around it
/// (4), its key (36), flags (8), and the list of allowed IPs (4).
const PART: usize = 4 + 36 + 8 + 4;

/// How an allowed IP leaves a peer that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// By the flag made for that (WGALLOWEDIP_F_REMOVE_ME, Linux 6.16).
    Flag,
    /// By way of a peer of this key, which takes it over and is removed at once, in the same message. That touches
    /// nothing else. Replacing all allowed IPs of the peer, the other way that older kernels offer, removes them all
    /// before it adds the first (`set_peer` in `drivers/net/wireguard/netlink.c`): packets that another processor
    /// looks up meanwhile are dropped. Here only those to what leaves are; where a wider network of any peer
    /// covers that, too, also they, for the microseconds until the decoy is gone.
    ///
    /// The key is random, so that nobody has its other half.
    Decoy([u8; 32]),
}

/// One message that changes a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// What concerns the whole device; only in the first message.
    pub device: Device,
    /// What concerns peers, in this order.
    pub steps: Vec<Step>,
}

/// What concerns the whole device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Whether to set the private key.
    pub identity: bool,
    /// The UDP port.
    pub listen_port: Option<u16>,
    /// The mark of the packets it sends.
    pub fwmark: Option<u32>,
}

/// Parts that must go in one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The peer to name when it is refused.
    pub peer: Option<PublicKey>,
    /// The parts, in this order.
    pub parts: Vec<Part>,
}

/// All that one message says of a peer, or a piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The peer's public key, which a [`Removal::Decoy`] need not be.
    pub key: [u8; 32],
    /// What to do with it.
    pub verb: Verb,
    /// Where to send to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
    /// Allowed IPs to add or to remove.
    pub allowed_ips: Vec<AllowedIp>,
}

/// What to do with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Create it, unless it is there.
    Set,
    /// Change it, if it is there. A peer that somebody removed meanwhile is not brought back by halves.
    Update,
    /// Remove it, if it is there.
    Remove,
}

/// An allowed IP and what to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedIp {
    /// The network.
    pub net: IpNet,
    /// Whether it is to leave the peer.
    pub remove: bool,
}

/// The messages that make `change`, in this order; none if there is nothing to change.
pub fn messages(change: &DeviceChange, removal: Removal) -> Vec<Message> {
    let DeviceChange { identity, listen_port, fwmark, peers } = change;
    let device = Device { identity: *identity, listen_port: *listen_port, fwmark: *fwmark };
    let mut packer = Packer { messages: vec![Message { device, steps: Vec::new() }], room: LIMIT - FIXED };
    for peer in peers {
        set(&mut packer, peer);
    }
    match removal {
        Removal::Flag => peers.iter().for_each(|peer| drop_by_flag(&mut packer, peer)),
        Removal::Decoy(key) => drop_by_decoy(&mut packer, peers, key),
    }
    packer.messages.retain(|message| *message != Message::default());
    packer.messages
}

/// All of a peer's change but what leaves it.
fn set(packer: &mut Packer, change: &PeerChange) {
    let PeerChange { public_key, remove, endpoint, keepalive, add, drop } = change;
    let nothing = endpoint.is_none() && keepalive.is_none() && add.is_empty();
    if nothing && !remove && !drop.is_empty() {
        return;
    }
    // Who asks for a new peer says where it is.
    let first = match endpoint {
        _ if *remove => Verb::Remove,
        Some(_) => Verb::Set,
        None => Verb::Update,
    };
    let add = if *remove { Vec::new() } else { add.iter().map(AllowedIp::addition).collect() };
    packer.put(&add, |continued, allowed_ips| {
        let part = Part { allowed_ips, ..Part::new(*public_key.as_bytes(), Verb::Update) };
        let part = match continued {
            true => part,
            false if *remove => Part { verb: first, ..part },
            false => Part { verb: first, endpoint: *endpoint, keepalive: *keepalive, ..part },
        };
        Step { peer: Some(*public_key), parts: vec![part] }
    });
}

fn drop_by_flag(packer: &mut Packer, change: &PeerChange) {
    let PeerChange { public_key, remove, drop, .. } = change;
    if *remove || drop.is_empty() {
        return;
    }
    let gone: Vec<_> = drop.iter().map(|net| AllowedIp { net: *net, remove: true }).collect();
    packer.put(&gone, |_, allowed_ips| Step {
        peer: Some(*public_key),
        parts: vec![Part { allowed_ips, ..Part::new(*public_key.as_bytes(), Verb::Update) }],
    });
}

/// One decoy takes what leaves all peers: each that is removed costs the kernel a pause for readers on all
/// processors (`wg_peer_remove`).
fn drop_by_decoy(packer: &mut Packer, peers: &[PeerChange], key: [u8; 32]) {
    let staying = || peers.iter().filter(|peer| !peer.remove);
    // The flag takes an allowed IP only from the peer it names. A decoy would take it from the one it moved to.
    let moved: HashMap<_, _> =
        staying().flat_map(|peer| peer.add.iter().map(|net| (*net, peer.public_key))).collect();
    let leaves = |peer: &PeerChange, net: &IpNet| moved.get(net).is_none_or(|to| *to == peer.public_key);
    let gone = staying().flat_map(|peer| peer.drop.iter().filter(move |net| leaves(peer, net)));
    let gone: Vec<_> = gone.map(AllowedIp::addition).collect();
    let Some(peer) = staying().find(|peer| !peer.drop.is_empty()).filter(|_| !gone.is_empty()) else {
        return;
    };
    packer.put(&gone, |_, allowed_ips| Step {
        peer: Some(peer.public_key),
        parts: vec![Part { allowed_ips, ..Part::new(key, Verb::Set) }, Part::new(key, Verb::Remove)],
    });
}

/// Fills messages one after the other.
struct Packer {
    messages: Vec<Message>,
    /// The bytes that the last message has left for peers.
    room: usize,
}

impl Packer {
    /// Adds `step` with these allowed IPs; as several, in several messages, where they are too many for one. `step` is
    /// told whether it continues what began in the message before.
    fn put(&mut self, allowed_ips: &[AllowedIp], step: impl Fn(bool, Vec<AllowedIp>) -> Step) {
        let frame = |continued| step(continued, Vec::new()).size();
        let whole = frame(false) + allowed_ips.iter().map(AllowedIp::size).sum::<usize>();
        if whole > self.room && whole <= LIMIT - FIXED {
            self.turn();
        }
        let (mut rest, mut continued) = (allowed_ips, false);
        loop {
            if self.room < frame(continued) + AllowedIp::LARGEST {
                self.turn();
            }
            let mut space = self.room - frame(continued);
            let fits = rest.iter().take_while(|net| match space.checked_sub(net.size()) {
                Some(less) => {
                    space = less;
                    true
                }
                None => false,
            });
            let (now, later) = rest.split_at(fits.count());
            self.room = space;
            let last = self.messages.last_mut().expect("there is always one");
            last.steps.push(step(continued, now.to_vec()));
            if later.is_empty() {
                return;
            }
            (rest, continued) = (later, true);
        }
    }

    fn turn(&mut self) {
        self.messages.push(Message::default());
        self.room = LIMIT - FIXED;
    }
}

impl Message {
    /// What a kernel understands that knows [`Removal::Flag`], and no other.
    pub fn trial(key: [u8; 32]) -> Self {
        let net = IpNet::V4(Ipv4Net::default());
        let part = Part { allowed_ips: vec![AllowedIp { net, remove: true }], ..Part::new(key, Verb::Set) };
        let step = Step { peer: None, parts: vec![part] };
        Self { device: Device::default(), steps: vec![step] }
    }

    /// The same as several messages, of which each does one thing: to find the one that is refused.
    pub fn singly(&self) -> impl Iterator<Item = Self> {
        let device = Self { device: self.device.clone(), steps: Vec::new() };
        let steps =
            self.steps.iter().map(|step| Self { device: Device::default(), steps: vec![step.clone()] });
        [device].into_iter().filter(|message| *message != Self::default()).chain(steps)
    }

    /// What it says of peers.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.steps.iter().flat_map(|step| &step.parts)
    }
}

impl Step {
    /// Its bytes in a message.
    fn size(&self) -> usize {
        self.parts.iter().map(Part::size).sum()
    }
}

impl Part {
    fn new(key: [u8; 32], verb: Verb) -> Self {
        Self { key, verb, endpoint: None, keepalive: None, allowed_ips: Vec::new() }
    }

    fn size(&self) -> usize {
        // The attribute (4) around `struct sockaddr_in` or `sockaddr_in6`.
        let endpoint = match self.endpoint {
            None => 0,
            Some(SocketAddr::V4(_)) => 4 + 16,
            Some(SocketAddr::V6(_)) => 4 + 28,
        };
        let keepalive = if self.keepalive.is_some() { 8 } else { 0 };
        PART + endpoint + keepalive + self.allowed_ips.iter().map(AllowedIp::size).sum::<usize>()
    }
}

impl AllowedIp {
    /// The most bytes that one takes.
    const LARGEST: usize = 48;

    fn addition(net: &IpNet) -> Self {
        Self { net: *net, remove: false }
    }

    /// The attributes around it (4), for family (8), address (8 or 20) and prefix length (8), and for the flag (8).
    fn size(&self) -> usize {
        let address = if matches!(self.net, IpNet::V4(_)) { 8 } else { 20 };
        let flag = if self.remove { 8 } else { 0 };
        4 + 8 + address + 8 + flag
    }
}
