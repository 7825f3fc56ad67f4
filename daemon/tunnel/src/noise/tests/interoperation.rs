//! With boringtun's `Tunn` at the other end, which is WireGuard by somebody else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::*;
use crate::noise::transport::Transport;

const PACKETS: u32 = 10_000;
const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 51820);

/// A `Tunn`, and an end that knows it. `limit` handshakes a second are taken without a cookie.
fn pair(psk: Option<PresharedKey>, limit: u64) -> (End, Tunn) {
    let (ours, theirs) = (secret(), secret());
    let limiter = Arc::new(RateLimiter::new(&(&theirs).into(), limit));
    let tunn = Tunn::new(theirs.clone(), (&ours).into(), psk, None, 0x00ab_cdef, Some(limiter));
    (End::new(&ours, (&theirs).into(), psk.unwrap_or_default()), tunn)
}

fn sent(result: TunnResult<'_>) -> Vec<u8> {
    let TunnResult::WriteToNetwork(datagram) = result else { panic!("{result:?}") };
    datagram.to_vec()
}

/// A packet that a `Tunn` takes for one.
fn packet(number: u32) -> [u8; 64] {
    let mut packet = [0; 64];
    packet[0] = 0x45;
    packet[3] = 64;
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

fn ours_to_tunn(transport: &mut Transport, tunn: &mut Tunn, number: u32) {
    let (mut buffer, mut out) = ([0; 128], [0; 128]);
    buffer[16..80].copy_from_slice(&packet(number));
    let len = transport.seal(&mut buffer, 64).unwrap();
    let result = tunn.decapsulate(None, &buffer[..len], &mut out);
    let TunnResult::WriteToTunnelV4(received, _) = result else { panic!("{result:?}") };
    assert_eq!(received, packet(number));
}

fn tunn_to_ours(tunn: &mut Tunn, transport: &mut Transport, number: u32) {
    let mut buffer = [0; 256];
    let datagram = sent(tunn.encapsulate(&packet(number), &mut buffer));
    assert_eq!(transport.open_into(&as_data(&datagram), &mut [0; 64]).unwrap(), packet(number));
}

/// We initiate. The responder may only send once it has got something.
fn by_us(end: &mut End, tunn: &mut Tunn, index: u32) -> Transport {
    let now = Timestamp::since_unix_epoch(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap());
    let (mut initiator, initiation) = end.initiate(index, now);
    let mut buffer = [0; 256];
    let response = sent(tunn.decapsulate(Some(SOURCE.ip()), &initiation, &mut buffer));
    assert!(end.checker.is_mac1_right(&as_response(&response)));
    let mut transport = Transport::new(&initiator.finish(&as_response(&response)).unwrap());
    assert_eq!(transport.local_index(), index);
    let len = transport.seal_from(&[], &mut buffer).unwrap();
    let keepalive = buffer[..len].to_vec();
    assert!(matches!(tunn.decapsulate(None, &keepalive, &mut buffer), TunnResult::Done));
    transport
}

/// The `Tunn` does, and confirms with a keepalive.
fn by_tunn(end: &mut End, tunn: &mut Tunn, index: u32) -> Transport {
    let mut buffer = [0; 256];
    let initiation = sent(tunn.format_handshake_initiation(&mut buffer, true));
    let (response, keys) = end.answer(&initiation, index);
    let mut transport = Transport::new(&keys);
    let keepalive = sent(tunn.decapsulate(Some(SOURCE.ip()), &response, &mut buffer));
    assert_eq!(transport.open(&keepalive).unwrap(), []);
    transport
}

#[test]
fn packets_pass_in_both_roles_with_and_without_psk() {
    for psk in [None, Some([0x5a; 32])] {
        for handshake in [by_us, by_tunn] {
            let (mut end, mut tunn) = pair(psk, u64::MAX);
            let mut transport = handshake(&mut end, &mut tunn, 0x0102_0304);
            for number in 0..PACKETS {
                ours_to_tunn(&mut transport, &mut tunn, number);
                tunn_to_ours(&mut tunn, &mut transport, number);
            }
        }
    }
}

#[test]
fn keys_are_renewed_while_the_old_ones_still_open() {
    let (mut end, mut tunn) = pair(Some([0x5a; 32]), u64::MAX);
    let mut old: Option<Transport> = None;
    for round in 0..10 {
        let handshake = if round % 2 == 0 { by_us } else { by_tunn };
        let mut buffer = [0; 256];
        let under_old = old.is_some().then(|| sent(tunn.encapsulate(&packet(99), &mut buffer)));
        let mut transport = handshake(&mut end, &mut tunn, round << 8);
        if let (Some(datagram), Some(old)) = (under_old, &mut old) {
            assert_eq!(old.open(&datagram).unwrap(), packet(99));
            // It also takes what is still on its way to it, before it has got more of the new.
            ours_to_tunn(old, &mut tunn, round);
        }
        for number in 0..100 {
            ours_to_tunn(&mut transport, &mut tunn, number);
            tunn_to_ours(&mut tunn, &mut transport, number);
        }
        old = Some(transport);
    }
}

#[test]
fn different_psks_do_not_fit() {
    let (mut end, mut tunn) = pair(Some([0x5a; 32]), u64::MAX);
    end.psk = [0x5b; 32];
    let mut buffer = [0; 256];
    let (response, _) = end.answer(&sent(tunn.format_handshake_initiation(&mut buffer, true)), 1);
    let result = tunn.decapsulate(None, &response, &mut buffer);
    assert!(matches!(result, TunnResult::Err(WireGuardError::InvalidAeadTag)), "{result:?}");
}

#[test]
fn a_tunn_under_load_gets_its_cookie_back() {
    let (mut end, mut tunn) = pair(None, 0);
    let mut buffer = [0; 256];
    let (_, initiation) = end.initiate(7, time(1));
    let reply = sent(tunn.decapsulate(Some(SOURCE.ip()), &initiation, &mut buffer));
    assert_eq!(as_cookie(&reply).receiver(), 7);
    end.stamper.take(&as_cookie(&reply), Instant::now()).unwrap();
    let mut transport = by_us(&mut end, &mut tunn, 8);
    ours_to_tunn(&mut transport, &mut tunn, 1);
    tunn_to_ours(&mut tunn, &mut transport, 2);
}

/// Responses have to be worth computing, too.
#[test]
fn a_tunn_under_load_gets_its_cookie_back_in_a_response() {
    let (mut end, mut tunn) = pair(None, 0);
    let mut buffer = [0; 256];
    let initiation = sent(tunn.format_handshake_initiation(&mut buffer, true));
    let (response, _) = end.answer(&initiation, 7);
    let reply = sent(tunn.decapsulate(Some(SOURCE.ip()), &response, &mut buffer));
    assert_eq!(as_cookie(&reply).receiver(), 7);
    end.stamper.take(&as_cookie(&reply), Instant::now()).unwrap();
    let mut transport = by_tunn(&mut end, &mut tunn, 8);
    ours_to_tunn(&mut transport, &mut tunn, 1);
    tunn_to_ours(&mut tunn, &mut transport, 2);
}

#[test]
fn under_load_we_get_our_cookie_back() {
    let (end, mut tunn) = pair(None, u64::MAX);
    let (now, mut buffer) = (Instant::now(), [0; 256]);
    let initiation = sent(tunn.format_handshake_initiation(&mut buffer, true));
    let message = as_initiation(&initiation);
    assert!(end.checker.is_mac1_right(&message));
    assert!(!end.checker.is_mac2_right(&message, SOURCE, now));
    let reply = end.checker.reply(&message, SOURCE, now);
    let result = tunn.decapsulate(None, &reply, &mut buffer);
    assert!(matches!(result, TunnResult::Done), "{result:?}");
    let initiation = sent(tunn.format_handshake_initiation(&mut buffer, true));
    assert!(end.checker.is_mac2_right(&as_initiation(&initiation), SOURCE, now));
}

#[test]
fn a_tunn_sees_our_replays_and_we_see_its() {
    let (mut end, mut tunn) = pair(None, u64::MAX);
    let (_, initiation) = end.initiate(1, time(1));
    let mut buffer = [0; 256];
    sent(tunn.decapsulate(None, &initiation, &mut buffer));
    let result = tunn.decapsulate(None, &initiation, &mut buffer);
    assert!(matches!(result, TunnResult::Err(WireGuardError::WrongTai64nTimestamp)), "{result:?}");
    let (mut last, mut news) = (None, Vec::new());
    let mut initiations = vec![sent(tunn.format_handshake_initiation(&mut buffer, true))];
    initiations.push(initiations[0].clone());
    initiations.push(sent(tunn.format_handshake_initiation(&mut buffer, true)));
    initiations.push(initiations[0].clone());
    for initiation in &initiations {
        let responder = Responder::read(&end.local, &as_initiation(initiation)).unwrap();
        news.push(responder.timestamp().is_news(&mut last));
    }
    assert_eq!(news, [true, false, true, false]);
}
