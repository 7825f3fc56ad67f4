//! Two devices of warren-tunnel that have shaken hands, without input or output: what the micro-benchmarks time, and
//! where the test of allocations counts. All that these know of the device's interface is in this file.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use ipnet::Ipv4Net;
use warren_tunnel::device::{Clock, Datagrams, Device, HANDSHAKES_PER_SECOND, PADDING, Packets};
use warren_tunnel::offload::Segments;
use warren_tunnel::uapi::{AllowedIpChange, DeviceUpdate, PeerUpdate};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Packets in a batch, as in the lanes of the program.
pub const BATCH: usize = 64;

/// Of the TUN.
const MTU: usize = 1420;

/// The peers among whom the other prefixes are divided.
const OTHERS: u32 = 200;

/// Where datagrams come from and go to; nothing is sent.
const LEFT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51820);
const RIGHT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 51820);

/// The pair, and what its calls fill.
pub struct Joined {
    left: Device,
    right: Device,
    clock: Clock,
    datagrams: Datagrams,
    answers: Datagrams,
    packets: Packets,
    packet: Vec<u8>,
}

impl Joined {
    /// Both know each other, and have exchanged packets; the left one knows `prefixes` prefixes besides, of other
    /// peers.
    pub fn new(prefixes: u32) -> Self {
        let clock = Clock::system();
        let [left_key, right_key] = [1, 2].map(|byte| StaticSecret::from([byte; 32]));
        let left = device(&left_key, &right_key, RIGHT, "10.9.0.2/32", clock.now);
        let right = device(&right_key, &left_key, LEFT, "10.9.0.1/32", clock.now);
        left.apply(&others(prefixes), clock.now).expect("the others are peers like any");
        let mut joined = Self {
            left,
            right,
            clock,
            datagrams: Datagrams::new(BATCH),
            answers: Datagrams::new(BATCH),
            packets: Packets::new(BATCH),
            packet: vec![0; MTU + PADDING],
        };
        joined.shake_hands();
        joined
    }

    /// Encrypts a batch of packets of so many bytes on the left. They stay until the next call.
    pub fn encapsulate(&mut self, bytes: usize) {
        self.datagrams.clear();
        let lane = self.left.lane(0, self.clock);
        for _ in 0..BATCH {
            write_packet(&mut self.packet, bytes, Ipv4Addr::new(10, 9, 0, 2));
            lane.packets(&mut single(&mut self.packet, bytes), &mut self.datagrams);
        }
        assert_eq!(self.datagrams.len(), BATCH);
    }

    /// Decrypts on the right what [`Joined::encapsulate`] has left.
    pub fn decapsulate(&mut self) {
        self.packets.clear();
        let lane = self.right.lane(0, self.clock);
        for (datagram, _) in self.datagrams.iter() {
            lane.datagram(LEFT, datagram, &mut self.answers, &mut self.packets);
        }
        assert_eq!(self.packets.len(), BATCH);
    }

    /// Looks for the peers of a batch of packets for addresses that nobody has: the lookup, and hardly more.
    pub fn look_up(&mut self) {
        let lane = self.left.lane(0, self.clock);
        for number in 0..BATCH as u32 {
            let nobody = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 127, 255, 0)) + number);
            write_packet(&mut self.packet, 64, nobody);
            lane.packets(&mut single(&mut self.packet, 64), &mut self.datagrams);
        }
    }

    fn shake_hands(&mut self) {
        // The first packet waits for the handshake: initiation, response, then itself.
        let lane = self.left.lane(0, self.clock);
        write_packet(&mut self.packet, 64, Ipv4Addr::new(10, 9, 0, 2));
        lane.packets(&mut single(&mut self.packet, 64), &mut self.datagrams);
        drop(lane);
        let [left, right] = [&self.left, &self.right].map(|device| device.lane(0, self.clock));
        for (datagram, _) in self.datagrams.iter() {
            right.datagram(LEFT, datagram, &mut self.answers, &mut self.packets);
        }
        self.datagrams.clear();
        for (datagram, _) in self.answers.iter() {
            left.datagram(RIGHT, datagram, &mut self.datagrams, &mut self.packets);
        }
        self.answers.clear();
        for (datagram, _) in self.datagrams.iter() {
            right.datagram(LEFT, datagram, &mut self.answers, &mut self.packets);
        }
        assert_eq!(self.packets.len(), 1, "the packet that waited for the handshake");
        self.answers.clear();
    }
}

fn device(own: &StaticSecret, other: &StaticSecret, at: SocketAddr, net: &str, now: Instant) -> Device {
    let device = Device::new(MTU, 1, HANDSHAKES_PER_SECOND, now);
    let mut peer = PeerUpdate::new(PublicKey::from(other).to_bytes());
    peer.endpoint = Some(at);
    peer.allowed_ips = vec![AllowedIpChange::add(net.parse().expect("a network"))];
    let private_key = Some(Zeroizing::new(own.to_bytes()));
    let update = DeviceUpdate { private_key, peers: vec![peer], ..DeviceUpdate::default() };
    device.apply(&update, now).expect("one good peer");
    device
}

/// Peers with /28 out of 100.64.0.0/10, none of which covers its last addresses.
fn others(prefixes: u32) -> DeviceUpdate {
    assert!(prefixes < 1 << 18, "there are 2^18 /28 in a /10");
    let net = |number: u32| Ipv4Net::new(Ipv4Addr::from(0x6440_0000 + (number << 4)), 28).expect("28 bits");
    let peers = (0..OTHERS.min(prefixes)).map(|peer| {
        let mut key = [0x42; 32];
        key[..4].copy_from_slice(&peer.to_be_bytes());
        let mut update = PeerUpdate::new(key);
        let nets = (peer..prefixes).step_by(OTHERS as usize);
        update.allowed_ips = nets.map(|number| AllowedIpChange::add(net(number).into())).collect();
        update
    });
    DeviceUpdate { peers: peers.collect(), ..DeviceUpdate::default() }
}

/// A packet that the TUN gave as it is.
fn single(packet: &mut [u8], bytes: usize) -> Segments<'_> {
    Segments::single(packet, bytes).expect("it is not empty and leaves room for padding")
}

/// An IPv4 header (RFC 791) with the addresses, and zeros. Encryption reads no more of it; decryption the lengths.
fn write_packet(packet: &mut [u8], bytes: usize, to: Ipv4Addr) {
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 9, 0, 1]);
    packet[16..20].copy_from_slice(&to.octets());
}
