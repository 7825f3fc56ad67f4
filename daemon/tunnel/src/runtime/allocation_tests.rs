//! Two lanes that reach each other over loopback, each with a pair of sockets for a TUN: from one to the other and back a
//! packet costs no allocation.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::*;
use crate::device::HANDSHAKES_PER_SECOND;
use crate::offload::vnet;
use crate::runtime::control;
use crate::sys::counting::allocations;
use crate::uapi::{AllowedIpChange, DeviceUpdate, PeerUpdate};

/// In one go: some leave as a run.
const PACKETS: usize = 32;
const LEN: usize = 1000;

/// A lane, and the kernel's side of its TUN.
struct End {
    lane: Lane,
    kernel: File,
    number: u8,
}

impl End {
    fn new(number: u8) -> Self {
        let device = Device::new(1420, 1, HANDSHAKES_PER_SECOND, Instant::now());
        let shared = Arc::new(Shared::new(device, Sockets::bind(1, 0, 0).unwrap(), 1).unwrap());
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (tun, kernel) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        Self { lane: Lane::new(0, shared, Queue::fake(tun.into())), kernel: kernel.into(), number }
    }

    fn secret(&self) -> StaticSecret {
        StaticSecret::from([self.number; 32])
    }

    /// Makes `other` the only peer.
    fn join(&self, other: &Self) {
        let mut peer = PeerUpdate::new(PublicKey::from(&other.secret()).to_bytes());
        peer.endpoint = Some((Ipv4Addr::LOCALHOST, other.lane.shared.sockets().port()).into());
        peer.persistent_keepalive = Some(25);
        peer.allowed_ips = vec![AllowedIpChange::add(IpAddr::from([10, 0, 0, other.number]).into())];
        let private_key = Some(Zeroizing::new(self.secret().to_bytes()));
        let request = DeviceUpdate { private_key, peers: vec![peer], ..Default::default() }.encode();
        assert_eq!(*control::answer(&self.lane.shared, &request), "errno=0\n\n");
    }

    /// Waits for the network, and takes a batch from it.
    fn take(&mut self) {
        let mut fds = [PollFd::new(self.lane.held.sockets.lane(0).as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000u16)), Ok(1), "nothing comes from the network");
        assert!(self.lane.decrypt_batch().unwrap() > 0);
    }
}

/// What the kernel gives: a vnet header that says nothing, and IPv4 of no known protocol.
fn packet(from: &End, to: &End) -> [u8; vnet::LEN + LEN] {
    let mut packet = [0; vnet::LEN + LEN];
    let ip = &mut packet[vnet::LEN..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(LEN as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&[10, 0, 0, from.number]);
    ip[16..20].copy_from_slice(&[10, 0, 0, to.number]);
    packet
}

/// Sends packets from one TUN to the other.
fn exchange(from: &mut End, to: &mut End) {
    let packet = packet(from, to);
    for _ in 0..PACKETS {
        assert_eq!((&from.kernel).write(&packet).unwrap(), packet.len());
    }
    from.lane.encrypt_batch().unwrap();
    let (mut received, mut buffer) = (0, [0; 2 * LEN]);
    while received < PACKETS {
        to.take();
        while let Ok(len) = (&to.kernel).read(&mut buffer) {
            assert_eq!(buffer[vnet::LEN..len], packet[vnet::LEN..]);
            received += 1;
        }
    }
}

#[test]
fn packets_from_one_tun_to_another_allocate_nothing() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1, "nothing is counted at all");
    let (mut left, mut right) = (End::new(1), End::new(2));
    left.join(&right);
    right.join(&left);
    // The handshake: initiation, response, and the first datagram with the new keys.
    left.lane.tick(Clock::system());
    right.take();
    left.take();
    right.take();
    // The first batch may still make room for what all later ones use.
    exchange(&mut left, &mut right);
    exchange(&mut right, &mut left);
    let rounds = 50;
    let counted = allocations(|| {
        for _ in 0..rounds {
            exchange(&mut left, &mut right);
            exchange(&mut right, &mut left);
        }
    });
    assert_eq!(counted, 0, "allocations for {} packets each way", rounds * PACKETS);
}
