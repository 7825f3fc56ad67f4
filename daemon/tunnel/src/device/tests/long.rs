//! Half an hour over a network that loses, doubles, delays and reorders, by a clock that tests move: every packet of which
//! a datagram arrives comes out, once, whatever happens to keys meanwhile.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::*;

const MINUTES: u64 = 30;
const STEP: Duration = Duration::from_millis(10);

/// What an end does with something that came.
#[derive(Default)]
struct Reaction {
    answers: Vec<Vec<u8>>,
    packet: Option<Vec<u8>>,
}

trait End {
    fn send(&mut self, packet: &[u8], clock: Clock) -> Vec<Vec<u8>>;
    fn receive(&mut self, datagram: &[u8], clock: Clock) -> Reaction;
    fn tick(&mut self, clock: Clock) -> Vec<Vec<u8>>;
}

/// A device with one peer.
struct Ours {
    device: Device,
    peer: SocketAddr,
}

impl Ours {
    fn new(private: &StaticSecret, peer: &StaticSecret, net: &str, now: Instant) -> Self {
        let device = Device::new(MTU, 1, HANDSHAKES_PER_SECOND, now);
        let at: SocketAddr = "192.0.2.9:9".parse().unwrap();
        let private_key = Some(Zeroizing::new(private.to_bytes()));
        let peers = vec![peer_with(PublicKey::from(peer).to_bytes(), Some(at), &[net])];
        device.apply(&DeviceUpdate { private_key, peers, ..DeviceUpdate::default() }, now).unwrap();
        Self { device, peer: at }
    }
}

fn datagrams(out: &Datagrams) -> Vec<Vec<u8>> {
    out.iter().map(|(bytes, _)| bytes.to_vec()).collect()
}

impl End for Ours {
    fn send(&mut self, packet: &[u8], clock: Clock) -> Vec<Vec<u8>> {
        let mut out = Datagrams::new(512);
        with_segments(packet, |segments| self.device.lane(0, clock).packets(segments, &mut out));
        datagrams(&out)
    }

    fn receive(&mut self, datagram: &[u8], clock: Clock) -> Reaction {
        let (mut out, mut packets) = (Datagrams::new(512), Packets::new(1));
        self.device.lane(0, clock).datagram(self.peer, datagram, &mut out, &mut packets);
        let packet = packets.iter().next().map(|(packet, ())| packet.to_vec());
        Reaction { answers: datagrams(&out), packet }
    }

    fn tick(&mut self, clock: Clock) -> Vec<Vec<u8>> {
        let mut out = Datagrams::new(512);
        self.device.tick(0, clock, &mut out, |_| panic!("the batch is large enough"));
        datagrams(&out)
    }
}

/// boringtun, of which the clock cannot be moved: where it is to ask for keys, it is told when.
struct Theirs {
    tunn: Tunn,
    asks: bool,
    next: Option<Instant>,
}

impl Theirs {
    fn new(private: &StaticSecret, peer: &StaticSecret, asks: bool) -> Self {
        let limiter = Arc::new(RateLimiter::new(&private.into(), u64::MAX));
        let tunn = Tunn::new(private.clone(), peer.into(), None, None, 0x00ab_cdef, Some(limiter));
        Self { tunn, asks, next: None }
    }
}

impl End for Theirs {
    fn send(&mut self, packet: &[u8], _: Clock) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        match self.tunn.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => vec![datagram.to_vec()],
            _ => vec![],
        }
    }

    fn receive(&mut self, datagram: &[u8], clock: Clock) -> Reaction {
        let (mut reaction, mut buffer) = (Reaction::default(), [0; 2048]);
        let mut rest = datagram;
        loop {
            match self.tunn.decapsulate(None, rest, &mut buffer) {
                TunnResult::WriteToNetwork(answer) => reaction.answers.push(answer.to_vec()),
                TunnResult::WriteToTunnelV4(packet, _) => reaction.packet = Some(packet.to_vec()),
                _ => break,
            }
            rest = &[];
        }
        if datagram[0] == RESPONSE && !reaction.answers.is_empty() {
            self.next = Some(clock.now + Duration::from_secs(120));
        }
        reaction
    }

    fn tick(&mut self, clock: Clock) -> Vec<Vec<u8>> {
        if !self.asks || self.next.is_some_and(|next| clock.now < next) {
            return vec![];
        }
        self.next = Some(clock.now + Duration::from_secs(5));
        match self.tunn.format_handshake_initiation(&mut [0; 256], true) {
            TunnResult::WriteToNetwork(datagram) => vec![datagram.to_vec()],
            other => panic!("{other:?}"),
        }
    }
}

/// A datagram under way.
struct Flying {
    at: Instant,
    /// To which end.
    to: usize,
    bytes: Vec<u8>,
}

struct Network {
    flying: Vec<Flying>,
    start: Instant,
    random: u64,
    /// Messages that arrived, by type.
    arrived: [usize; 5],
}

impl Network {
    /// xorshift64: each seed is another, but always the same network.
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn take(&mut self, to: usize, sent: Vec<Vec<u8>>, now: Instant) {
        // Every two minutes all is lost for 12 seconds, at ever other moments of a key's life.
        let dead = (now - self.start).as_secs() % 127 >= 115;
        for bytes in sent {
            let copies = 1 + u64::from(self.one_in(20));
            for _ in 0..copies {
                let lost = dead || self.one_in(10);
                let late = if self.one_in(20) { 300 } else { 0 };
                let delay = Duration::from_millis(20 + self.below(80) + late);
                if !lost {
                    self.flying.push(Flying { at: now + delay, to, bytes: bytes.clone() });
                }
            }
        }
    }

    fn arriving(&mut self, now: Instant) -> Vec<Flying> {
        let mut arriving: Vec<_> = self.flying.extract_if(.., |flying| flying.at <= now).collect();
        arriving.sort_by_key(|flying| flying.at);
        arriving.iter().for_each(|flying| self.arrived[usize::from(flying.bytes[0])] += 1);
        arriving
    }
}

/// A packet from an end, of which none is like another.
fn numbered(from: usize, number: u64) -> Vec<u8> {
    let mut packet = if from == 0 { a_to_b(8) } else { b_to_a(8) };
    packet[20..].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Both ends send. Returns the network, and how many packets were sent and came out.
fn converse(mut ends: [Box<dyn End>; 2], start: Instant, seed: u64) -> (Network, u64, u64) {
    let wall = SystemTime::now();
    let mut network = Network { flying: Vec::new(), start, random: seed, arrived: [0; 5] };
    let mut out = std::collections::HashSet::new();
    let mut numbers = 0;
    // Datagrams with a packet in them, of which a copy has come.
    let mut seen = std::collections::HashSet::new();
    for step in 0..MINUTES * 60 * 100 {
        let elapsed = STEP * u32::try_from(step).unwrap();
        let clock = Clock { now: start + elapsed, wall: wall + elapsed };
        for Flying { to, bytes, at: _ } in network.arriving(clock.now) {
            let Reaction { answers, packet } = ends[to].receive(&bytes, clock);
            if bytes[0] == DATA && bytes.len() > 32 {
                assert_eq!(
                    packet.is_some(),
                    seen.insert(bytes),
                    "after {elapsed:?}, at end {to}, seed {seed}"
                );
            }
            if let Some(packet) = packet {
                assert!(out.insert(packet), "a packet came out twice");
            }
            network.take(1 - to, answers, clock.now);
        }
        for (end, from) in ends.iter_mut().zip(0..) {
            let mut sent = Vec::new();
            // Not all the time: there are pauses in which only keepalives go.
            if step % 5 == from as u64 && elapsed.as_secs() % 300 < 250 {
                numbers += 1;
                sent.extend(end.send(&numbered(from, numbers), clock));
            }
            if step % 25 == from as u64 {
                sent.extend(end.tick(clock));
            }
            network.take(1 - from, sent, clock.now);
        }
    }
    (network, numbers, out.len() as u64)
}

fn secrets() -> [StaticSecret; 2] {
    [(); 2].map(|()| StaticSecret::random_from_rng(rand_core::OsRng))
}

/// At least a tenth of all is lost by the network, and as much again when it is dead.
fn assert_held(network: &Network, sent: u64, out: u64) {
    let rekeys = network.arrived[usize::from(RESPONSE)];
    println!("{sent} packets, {out} came out, {rekeys} responses arrived");
    assert!(out * 100 > sent * 75 && out < sent, "{out} of {sent}");
    assert!(rekeys >= 11, "{rekeys} handshakes");
}

#[test]
fn two_devices_lose_nothing_that_arrives() {
    for seed in 1..4 {
        let ([a, b], now) = (secrets(), Instant::now());
        let ends: [Box<dyn End>; 2] = [
            Box::new(Ours::new(&a, &b, "10.0.0.2/32", now)),
            Box::new(Ours::new(&b, &a, "10.0.0.1/32", now)),
        ];
        let (network, sent, out) = converse(ends, now, seed);
        assert_held(&network, sent, out);
    }
}

#[test]
fn boringtun_and_a_device_lose_nothing_that_arrives() {
    for asks in [false, true] {
        let ([a, b], now) = (secrets(), Instant::now());
        let ends: [Box<dyn End>; 2] =
            [Box::new(Ours::new(&a, &b, "10.0.0.2/32", now)), Box::new(Theirs::new(&b, &a, asks))];
        let (network, sent, out) = converse(ends, now, 7);
        assert_held(&network, sent, out);
    }
}
