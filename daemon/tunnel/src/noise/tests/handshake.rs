//! Two ends of ours, and what an initiator and a responder have to bear.

use super::*;
use crate::noise::Error;
use crate::noise::transport::Transport;

/// Whether what one seals the other opens, and the other way round.
fn fit(a: &Keys, b: &Keys) -> bool {
    let (mut a, mut b) = (Transport::new(a), Transport::new(b));
    let mut buffer = [0; 100];
    let there = a.seal_from(b"there", &mut buffer).unwrap();
    let there = b.open(&buffer[..there]).is_ok_and(|packet| packet == b"there");
    let back = b.seal_from(b"back", &mut buffer).unwrap();
    there && a.open(&buffer[..back]).is_ok_and(|packet| packet == b"back")
}

#[test]
fn both_ends_get_keys() {
    for psk in [[0; 32], [9; 32]] {
        let (mut a, mut b) = ends(psk);
        let (mut initiator, initiation) = a.initiate(0x0102_0304, time(1));
        assert_eq!(initiator.index(), 0x0102_0304);
        let (response, of_b) = b.answer(&initiation, 0x0506_0708);
        assert!(a.checker.is_mac1_right(&as_response(&response)));
        let of_a = initiator.finish(&as_response(&response)).unwrap();
        assert_eq!((of_a.local_index, of_a.peer_index), (0x0102_0304, 0x0506_0708));
        assert_eq!((of_b.local_index, of_b.peer_index), (0x0506_0708, 0x0102_0304));
        assert!(fit(&of_a, &of_b));
    }
}

#[test]
fn a_responder_learns_who_and_when_before_the_psk_matters() {
    let (mut a, b) = ends([9; 32]);
    let now = Timestamp::since_unix_epoch(std::time::Duration::new(1_800_000_000, 5));
    let (_, initiation) = a.initiate(1, now);
    let responder = Responder::read(&b.local, &as_initiation(&initiation)).unwrap();
    assert_eq!(responder.peer(), a.local.public());
    assert_eq!(responder.timestamp(), now);
}

#[test]
fn different_psks_end_in_no_keys() {
    let (mut a, mut b) = ends([9; 32]);
    b.psk = [0; 32];
    let (mut initiator, initiation) = a.initiate(1, time(1));
    let (response, _) = b.answer(&initiation, 2);
    assert_eq!(initiator.finish(&as_response(&response)).unwrap_err(), Error::Handshake);
    b.psk = a.psk;
    let (response, of_b) = b.answer(&initiation, 3);
    assert!(fit(&initiator.finish(&as_response(&response)).unwrap(), &of_b), "the initiator has gone on");
}

#[test]
fn an_initiation_is_for_one_recipient() {
    let (mut a, b) = ends([0; 32]);
    let (_, initiation) = a.initiate(1, time(1));
    let stranger = LocalKey::new(secret());
    assert_eq!(Responder::read(&stranger, &as_initiation(&initiation)).err(), Some(Error::Handshake));
    assert!(Responder::read(&b.local, &as_initiation(&initiation)).is_ok());
}

#[test]
fn a_response_is_for_one_initiation() {
    let (mut a, mut b) = ends([0; 32]);
    let (mut first, initiation) = a.initiate(1, time(1));
    let (mut second, _) = a.initiate(1, time(2));
    let (mut other, _) = a.initiate(2, time(3));
    let (response, of_b) = b.answer(&initiation, 3);
    let response = as_response(&response);
    assert_eq!(other.finish(&response).unwrap_err(), Error::Index);
    assert_eq!(second.finish(&response).unwrap_err(), Error::Handshake);
    assert!(fit(&first.finish(&response).unwrap(), &of_b));
    assert_eq!(first.finish(&response).unwrap_err(), Error::Handshake, "a replay");
}

#[test]
fn each_answer_has_keys_of_its_own() {
    let (mut a, mut b) = ends([0; 32]);
    let (mut initiator, initiation) = a.initiate(1, time(1));
    let (_, unused) = b.answer(&initiation, 2);
    let (response, used) = b.answer(&initiation, 3);
    let of_a = initiator.finish(&as_response(&response)).unwrap();
    assert!(!fit(&of_a, &Keys { local_index: 3, ..unused }));
    assert!(fit(&of_a, &used));
}

/// A session is behind a lock, and whichever thread has it uses its parts.
#[test]
fn parts_go_from_thread_to_thread() {
    fn sent<T: Send>() {}
    sent::<(LocalKey, PeerKey, Initiator, Responder, Keys, Transport, Stamper)>();
    fn shared<T: Sync>() {}
    shared::<Checker>();
}

/// An initiator whose key makes every shared secret zero would be anybody.
#[test]
fn weak_keys_are_nobodys() {
    let (mut a, b) = ends([0; 32]);
    assert!(PeerKey::new(&a.local, [0; 32].into()).is_none());
    let (_, mut initiation) = a.initiate(1, time(1));
    initiation[8..40].fill(0);
    assert_eq!(Responder::read(&b.local, &as_initiation(&initiation)).err(), Some(Error::Handshake));
}

#[test]
fn debug_tells_no_keys() {
    let (mut a, mut b) = ends([0; 32]);
    let (_, keys) = b.answer(&a.initiate(1, time(1)).1, 2);
    assert_eq!(format!("{keys:?}"), "Keys { local_index: 2, peer_index: 1, .. }");
}
