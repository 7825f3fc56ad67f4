//! What a packet costs, beside a `Tunn`. Not a test: nothing is asserted of times.
//!
//! `cargo test --release -p warren-tunnel --lib noise -- --ignored --nocapture`

use std::hint::black_box;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};

use super::*;
use crate::noise::transport::Transport;

const LEN: usize = 1420;
const ROUNDS: usize = 200;
/// Packets in a round: as many as a lane takes at once, so that they lie in the cache as they would there.
const BATCH: usize = 64;

/// Two `Tunn`s with keys for each other.
fn tunns() -> (Tunn, Tunn) {
    let (a, b) = (secret(), secret());
    let mut one = Tunn::new(a.clone(), (&b).into(), None, None, 1, None);
    let mut other = Tunn::new(b, (&a).into(), None, None, 2, None);
    let (mut there, mut back) = ([0; 256], [0; 256]);
    let TunnResult::WriteToNetwork(initiation) = one.format_handshake_initiation(&mut there, true) else {
        panic!()
    };
    let TunnResult::WriteToNetwork(response) = other.decapsulate(None, initiation, &mut back) else {
        panic!()
    };
    let TunnResult::WriteToNetwork(keepalive) = one.decapsulate(None, response, &mut there) else { panic!() };
    assert!(matches!(other.decapsulate(None, keepalive, &mut back), TunnResult::Done));
    (one, other)
}

fn sessions() -> (Transport, Transport) {
    let (mut a, mut b) = ends([0; 32]);
    let (mut initiator, initiation) = a.initiate(1, time(1));
    let (response, of_b) = b.answer(&initiation, 2);
    (Transport::new(&initiator.finish(&as_response(&response)).unwrap()), Transport::new(&of_b))
}

/// Times of single rounds, of which the median is told: others use the processor, too.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn take<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = black_box(work());
        self.0.push(start.elapsed());
        result
    }

    fn tell(mut self, name: &str) {
        self.0.sort();
        let each = |round: Duration| round.as_nanos() as f64 / BATCH as f64;
        println!("{name:24} {:7.1} ns (best {:7.1})", each(self.0[ROUNDS / 2]), each(self.0[0]));
    }
}

#[test]
#[ignore = "prints times, asserts none"]
fn timing() {
    let (mut tunn, mut other_tunn) = tunns();
    let (mut a, mut b) = sessions();
    let mut packet = vec![0_u8; LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(LEN as u16).to_be_bytes());
    let size = LEN + 32;
    // As a lane has them: one behind the other.
    let mut datagrams = vec![0_u8; BATCH * size];
    let mut packets = vec![0_u8; BATCH * size];
    let [mut encapsulate, mut decapsulate, mut seal, mut seal_from, mut open, mut open_into] =
        [const { Times(Vec::new()) }; 6];
    for _ in 0..ROUNDS {
        encapsulate.take(|| {
            for room in datagrams.chunks_exact_mut(size) {
                assert!(matches!(tunn.encapsulate(black_box(&packet), room), TunnResult::WriteToNetwork(_)));
            }
        });
        decapsulate.take(|| {
            for (datagram, room) in datagrams.chunks_exact(size).zip(packets.chunks_exact_mut(size)) {
                let result = other_tunn.decapsulate(None, black_box(datagram), room);
                assert!(matches!(result, TunnResult::WriteToTunnelV4(..)));
            }
        });
        seal_from.take(|| {
            for room in datagrams.chunks_exact_mut(size) {
                assert_eq!(a.seal_from(black_box(&packet), room), Ok(size));
            }
        });
        open_into.take(|| {
            for (datagram, room) in datagrams.chunks_exact(size).zip(packets.chunks_exact_mut(size)) {
                assert!(b.open_into(&as_data(black_box(datagram)), room).is_ok());
            }
        });
        datagrams.chunks_exact_mut(size).for_each(|room| room[16..16 + LEN].copy_from_slice(&packet));
        seal.take(|| {
            for room in datagrams.chunks_exact_mut(size) {
                assert_eq!(a.seal(black_box(room), LEN), Ok(size));
            }
        });
        open.take(|| {
            for datagram in datagrams.chunks_exact_mut(size) {
                assert_eq!(b.open(black_box(datagram)).map(|packet| packet.len()), Ok(LEN));
            }
        });
    }
    encapsulate.tell("Tunn::encapsulate");
    seal_from.tell("Transport::seal_from");
    seal.tell("Transport::seal");
    decapsulate.tell("Tunn::decapsulate");
    open_into.tell("Transport::open_into");
    open.tell("Transport::open");
}
