//! Two devices joined by an eavesdropper.

mod config;
mod handshake;
mod hostile;
mod lanes;
mod long;
mod many;
mod rekeying;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::*;
use crate::uapi::{AllowedIpChange, PeerState, PeerUpdate};

const MTU: usize = 1420;
/// Lanes of each device; peers have one unless a test gives them more.
const LANES: u16 = 4;

/// A device with its keys, an address, and what has come out of its TUN.
struct Node {
    device: Device,
    private: StaticSecret,
    address: SocketAddr,
    delivered: Vec<Vec<u8>>,
}

/// A datagram seen on the wire.
#[derive(Clone)]
struct Seen {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// Two nodes, the time, and everything that ever passed between them.
struct Wire {
    a: Node,
    b: Node,
    seen: Vec<Seen>,
    now: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    A,
    B,
}

impl Node {
    fn new(address: &str, now: Instant, limit: u64) -> Self {
        let private = StaticSecret::random_from_rng(rand_core::OsRng);
        let device = Device::new(MTU, LANES, limit, now);
        let node = Self { device, private, address: address.parse().unwrap(), delivered: Vec::new() };
        node.apply(&node.private_key_update(), now);
        node
    }

    fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.private).to_bytes()
    }

    fn private_key_update(&self) -> DeviceUpdate {
        let private_key = Some(Zeroizing::new(self.private.to_bytes()));
        DeviceUpdate { private_key, ..DeviceUpdate::default() }
    }

    fn apply(&self, update: &DeviceUpdate, now: Instant) {
        self.device.apply(update, now).unwrap();
    }

    fn apply_peer(&self, peer: PeerUpdate, now: Instant) {
        self.apply(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() }, now);
    }

    fn peer(&self, key: [u8; 32]) -> PeerState {
        self.device.state().peers.into_iter().find(|peer| peer.public_key == key).expect("the peer exists")
    }

    fn dropped(&self, reason: Drop) -> u64 {
        self.device.drops().get(reason)
    }
}

/// A peer that owns `nets`.
fn peer_with(key: [u8; 32], endpoint: Option<SocketAddr>, nets: &[&str]) -> PeerUpdate {
    let mut peer = PeerUpdate::new(key);
    peer.endpoint = endpoint;
    peer.allowed_ips = nets.iter().map(|net| AllowedIpChange::add(net.parse().unwrap())).collect();
    peer
}

impl Wire {
    /// a (10.0.0.1, fd00::1) and b (10.0.0.2, fd00::2); a knows where b is, b does not know where a is.
    fn new() -> Self {
        Self::with_limit(HANDSHAKES_PER_SECOND)
    }

    fn with_limit(limit: u64) -> Self {
        let now = Instant::now();
        let a = Node::new("192.0.2.1:1001", now, limit);
        let b = Node::new("192.0.2.2:1002", now, limit);
        a.apply_peer(peer_with(b.public(), Some(b.address), &["10.0.0.2/32", "fd00::2/128"]), now);
        b.apply_peer(peer_with(a.public(), None, &["10.0.0.1/32", "fd00::1/128"]), now);
        Self { a, b, seen: Vec::new(), now }
    }

    fn node(&mut self, side: Side) -> &mut Node {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    fn clock(&self) -> Clock {
        Clock { now: self.now, wall: SystemTime::now() }
    }

    /// Time passes, without ticks.
    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// What `side` sends when its TUN yields `packet`.
    fn encrypt(&mut self, side: Side, packet: &[u8]) -> Vec<Seen> {
        let mut out = Datagrams::new(512);
        let clock = self.clock();
        with_segments(packet, |segments| self.node(side).device.lane(0, clock).packets(segments, &mut out));
        self.take(side, &out)
    }

    /// What `side` sends because time passed.
    fn tick(&mut self, side: Side) -> Vec<Seen> {
        let mut out = Datagrams::new(512);
        let clock = self.clock();
        self.node(side).device.tick(0, clock, &mut out, |_| panic!("the batch is large enough"));
        self.take(side, &out)
    }

    /// What `side` answers to a datagram.
    fn receive(&mut self, side: Side, from: SocketAddr, bytes: &[u8]) -> Vec<Seen> {
        let (mut out, mut packets) = (Datagrams::new(512), Packets::new(8));
        let clock = self.clock();
        let node = self.node(side);
        node.device.lane(0, clock).datagram(from, bytes, &mut out, &mut packets);
        node.delivered.extend(packets.iter().map(|(packet, ())| packet.to_vec()));
        self.take(side, &out)
    }

    fn take(&mut self, side: Side, out: &Datagrams) -> Vec<Seen> {
        let from = self.node(side).address;
        let sent: Vec<Seen> =
            out.iter().map(|(bytes, note)| Seen { from, to: note.to, bytes: bytes.to_vec() }).collect();
        self.seen.extend_from_slice(&sent);
        sent
    }

    /// Carries datagrams to and fro until nobody answers any more.
    fn carry(&mut self, mut sent: Vec<Seen>) {
        for _ in 0..100 {
            let Some(round) = Some(std::mem::take(&mut sent)).filter(|round| !round.is_empty()) else {
                return;
            };
            for datagram in round {
                let to = if datagram.to == self.a.address {
                    Side::A
                } else if datagram.to == self.b.address {
                    Side::B
                } else {
                    continue;
                };
                sent.extend(self.receive(to, datagram.from, &datagram.bytes));
            }
        }
        panic!("the devices never come to rest");
    }

    /// Sends a packet and carries everything it causes; says whether it came out on the other side intact.
    fn send(&mut self, side: Side, packet: &[u8]) -> bool {
        let other = if side == Side::A { Side::B } else { Side::A };
        self.node(other).delivered.clear();
        let sent = self.encrypt(side, packet);
        self.carry(sent);
        self.node(other).delivered.iter().any(|delivered| delivered == packet)
    }

    /// Both directions work.
    fn both_ways(&mut self) -> bool {
        self.send(Side::A, &a_to_b(100)) && self.send(Side::B, &b_to_a(100))
    }

    /// The last datagram of a type (first byte) that passed.
    fn last(&self, kind: u8) -> Seen {
        self.seen.iter().rev().find(|seen| seen.bytes[0] == kind).expect("one passed").clone()
    }

    fn count(&self, kind: u8) -> usize {
        self.seen.iter().filter(|seen| seen.bytes[0] == kind).count()
    }
}

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

/// Lends `packet` out as the TUN does.
fn with_segments(packet: &[u8], user: impl FnOnce(&mut Segments<'_>)) {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + SPARE, 0xff);
    if let Ok(mut segments) = Segments::single(&mut buffer, packet.len()) {
        user(&mut segments);
    }
}

/// An IP packet with `payload` bytes behind its header.
fn packet(source: &str, destination: &str, payload: usize) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&u16::try_from(20 + payload).unwrap().to_be_bytes());
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&u16::try_from(payload).unwrap().to_be_bytes());
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            header
        }
        _ => panic!("mixed families"),
    };
    packet.extend((0..payload).map(|byte| byte as u8));
    packet
}

fn a_to_b(payload: usize) -> Vec<u8> {
    packet("10.0.0.1", "10.0.0.2", payload)
}

fn b_to_a(payload: usize) -> Vec<u8> {
    packet("10.0.0.2", "10.0.0.1", payload)
}
