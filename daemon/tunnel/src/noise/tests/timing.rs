//! What a packet costs, beside a `Tunn`. Not a test: nothing is asserted of times.
//!
//! `cargo test --release -p warren-tunnel --lib noise -- --ignored --nocapture`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::*;
use crate::noise::transport::Transport;

const LEN: usize = 1420;
const ROUNDS: usize = 200;
/// Packets in a round: as many as a lane takes at once, so that they lie in the cache as they would there.
const BATCH: usize = 64;

/// Two `Tunn`s that know each other, and never ask for a cookie.
fn strange_tunns() -> (Tunn, Tunn) {
    let (a, b) = (secret(), secret());
    let limiter = |secret: &StaticSecret| Some(Arc::new(RateLimiter::new(&secret.into(), u64::MAX)));
    let one = Tunn::new(a.clone(), (&b).into(), None, None, 1, limiter(&a));
    let other = Tunn::new(b.clone(), (&a).into(), None, None, 2, limiter(&b));
    (one, other)
}

/// Two that have keys for each other, too.
fn tunns() -> (Tunn, Tunn) {
    let (mut one, mut other) = strange_tunns();
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

    /// Tells the time of one of `parts` of a round.
    fn tell(mut self, name: &str, parts: usize) {
        self.0.sort();
        let each = |round: Duration| round.as_nanos() as f64 / parts as f64;
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
    encapsulate.tell("Tunn::encapsulate", BATCH);
    seal_from.tell("Transport::seal_from", BATCH);
    seal.tell("Transport::seal", BATCH);
    decapsulate.tell("Tunn::decapsulate", BATCH);
    open_into.tell("Transport::open_into", BATCH);
    open.tell("Transport::open", BATCH);
}

#[test]
#[ignore = "prints times, asserts none"]
fn timing_of_handshakes() {
    let (mut tunn, mut other_tunn) = strange_tunns();
    let (mut a, mut b) = ends([0; 32]);
    let (mut there, mut back) = ([0; 256], [0; 256]);
    let [mut tunn_initiates, mut tunn_answers, mut tunn_finishes] = [const { Times(Vec::new()) }; 3];
    let [mut initiates, mut answers, mut finishes] = [const { Times(Vec::new()) }; 3];
    for _ in 0..ROUNDS {
        let result = tunn_initiates.take(|| tunn.format_handshake_initiation(&mut there, true));
        let TunnResult::WriteToNetwork(initiation) = result else { panic!() };
        let result = tunn_answers.take(|| other_tunn.decapsulate(None, initiation, &mut back));
        let TunnResult::WriteToNetwork(response) = result else { panic!() };
        tunn_finishes.take(|| {
            assert!(matches!(tunn.decapsulate(None, response, &mut there), TunnResult::WriteToNetwork(_)))
        });
        let (mut initiator, initiation) = initiates.take(|| a.initiate(1, time(1)));
        let (response, of_b) = answers.take(|| {
            let (response, keys) = b.answer(&initiation, 2);
            (response, Transport::new(&keys))
        });
        let of_a = finishes.take(|| {
            assert!(a.checker.is_mac1_right(&as_response(&response)));
            Transport::new(&initiator.finish(&as_response(&response)).unwrap())
        });
        black_box((of_a, of_b));
    }
    tunn_initiates.tell("Tunn initiates", 1);
    initiates.tell("End initiates", 1);
    tunn_answers.tell("Tunn answers", 1);
    answers.tell("End answers", 1);
    tunn_finishes.tell("Tunn finishes", 1);
    finishes.tell("End finishes", 1);
    println!(
        "Transport {} bytes, Stamper {}, pending handshake {}",
        size_of::<Transport>(),
        size_of::<Stamper>(),
        size_of::<snow::HandshakeState>()
    );
}
