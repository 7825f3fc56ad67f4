//! A kernel that refuses as the test says, in place of the system's.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use super::*;

/// What went out: a datagram's first byte, or the first bytes of a run's, and whether it had its source address.
type Sent = Rc<RefCell<Vec<(Vec<u8>, bool)>>>;

/// A sender whose messages are refused as `refuse` says, and else are noted.
fn sender(refuse: impl Fn(&Message<'_>) -> Option<Errno> + 'static) -> (Sender, Sent) {
    let sent = Sent::default();
    let notes = sent.clone();
    let system = move |_: BorrowedFd<'_>, messages: &[Message<'_>]| {
        let mut count = 0;
        for message in messages {
            if let Some(error) = refuse(message) {
                // As sendmmsg(2): an error only if it is about the first.
                return if count == 0 { Err(error.into()) } else { Ok(count) };
            }
            let segment = message.segment.map_or(message.bytes.len(), usize::from);
            let firsts = message.bytes.chunks(segment).map(|datagram| datagram[0]).collect();
            notes.borrow_mut().push((firsts, message.from.is_some()));
            count += 1;
        }
        Ok(count)
    };
    (Sender::by(Box::new(system)), sent)
}

/// Sends datagrams of so many bytes, numbered from 0, to one destination.
fn send(sender: &mut Sender, lengths: &[usize], from: Option<IpAddr>, counters: &Counters) {
    let sockets = Sockets::bind(1, 0, 0).unwrap();
    assert!(sockets.segmentation(), "this kernel has UDP_SEGMENT");
    let mut batch = Datagrams::new(BATCH);
    for (number, len) in lengths.iter().enumerate() {
        let note = Destination { lane: 0, to: "192.0.2.1:9".parse().unwrap(), from };
        batch.push(&vec![number as u8; *len], note);
    }
    sender.send(&sockets, &mut batch, counters);
    assert!(batch.is_empty());
}

fn count(counters: &Counters, name: &str) -> u64 {
    let mut all = counters.counts(true).chain(counters.counts(false));
    all.find(|(other, _)| *other == name).expect("a counter of this name").1
}

fn singles(numbers: std::ops::Range<u8>, with_source: bool) -> Vec<(Vec<u8>, bool)> {
    numbers.map(|number| (vec![number], with_source)).collect()
}

const SOURCE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)));

#[test]
fn a_path_that_takes_no_runs_gets_single_datagrams_in_order_from_then_on() {
    for error in [Errno::EIO, Errno::EOPNOTSUPP] {
        let runs = Rc::new(RefCell::new(0));
        let tried = runs.clone();
        let (mut sender, sent) = sender(move |message| {
            message.segment.map(|_| {
                *tried.borrow_mut() += 1;
                error
            })
        });
        let counters = Counters::default();
        send(&mut sender, &[100; 20], SOURCE, &counters);
        assert_eq!(*sent.borrow(), singles(0..20, true), "{error}");
        assert_eq!((*runs.borrow(), count(&counters, "segmentation_refused")), (1, 1));
        // No run is even tried any more.
        sent.borrow_mut().clear();
        send(&mut sender, &[100; 20], SOURCE, &counters);
        assert_eq!(*sent.borrow(), singles(0..20, true));
        assert_eq!((*runs.borrow(), count(&counters, "segmentation_refused")), (1, 1));
        let others = ["run_refused", "source_refused", "no_route"].map(|name| count(&counters, name));
        assert_eq!(others, [0; 3]);
    }
}

/// A batch of full packets is two runs, since one takes 45 of them.
#[test]
fn the_rest_of_a_batch_is_not_tried_in_runs_once_one_has_given_them_up() {
    let tried = Cell::new(false);
    let (mut sender, sent) = sender(move |message| {
        message.segment.map(|_| {
            assert!(!tried.replace(true), "a second run is tried");
            Errno::EIO
        })
    });
    let counters = Counters::default();
    send(&mut sender, &[1452; BATCH], SOURCE, &counters);
    assert_eq!(*sent.borrow(), singles(0..64, true));
    assert_eq!((count(&counters, "segmentation_refused"), count(&counters, "run_refused")), (1, 0));
}

/// What has left already when a run is refused is not sent again.
#[test]
fn giving_up_runs_behind_a_single_datagram_sends_each_once() {
    let (mut sender, sent) = sender(|message| message.segment.map(|_| Errno::EIO));
    let counters = Counters::default();
    // A single one, two runs, and a single one.
    let lengths = [[60; 1].as_slice(), &[100; 4], &[200; 4], &[300; 1]].concat();
    send(&mut sender, &lengths, None, &counters);
    assert_eq!(*sent.borrow(), singles(0..10, false));
    assert_eq!(count(&counters, "segmentation_refused"), 1);
}

#[test]
fn a_run_that_is_refused_behind_others_keeps_its_place() {
    // 0 to 4 are a run, 5 to 7 a longer one that is refused, 8 and 9 a run again.
    let (mut sender, sent) =
        sender(|message| message.segment.filter(|segment| *segment == 200).map(|_| Errno::EMSGSIZE));
    let counters = Counters::default();
    let lengths = [[100; 5].as_slice(), &[200; 3], &[300; 2]].concat();
    send(&mut sender, &lengths, None, &counters);
    let expected = [vec![0, 1, 2, 3, 4], vec![5], vec![6], vec![7], vec![8, 9]].map(|run| (run, false));
    assert_eq!(*sent.borrow(), expected);
    assert_eq!(count(&counters, "run_refused"), 1);
}

#[test]
fn a_run_that_is_too_large_leaves_singly_and_with_its_source() {
    let (mut sender, sent) = sender(|message| message.segment.map(|_| Errno::EINVAL));
    let counters = Counters::default();
    for _ in 0..2 {
        sent.borrow_mut().clear();
        send(&mut sender, &[100; 10], SOURCE, &counters);
        assert_eq!(*sent.borrow(), singles(0..10, true));
    }
    assert_eq!((count(&counters, "run_refused"), count(&counters, "source_refused")), (2, 0));
}

#[test]
fn a_source_that_is_gone_is_given_up_and_runs_are_not() {
    let (mut sender, sent) = sender(|message| message.from.map(|_| Errno::EINVAL));
    let counters = Counters::default();
    send(&mut sender, &[100; 10], SOURCE, &counters);
    assert_eq!(*sent.borrow(), [((0..10).collect(), false)]);
    sent.borrow_mut().clear();
    send(&mut sender, &[100], SOURCE, &counters);
    assert_eq!(*sent.borrow(), [(vec![0], false)]);
    assert_eq!((count(&counters, "run_refused"), count(&counters, "source_refused")), (0, 2));
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes_on() {
    let (mut sender, sent) = sender(|message| (message.bytes[0] == 2).then_some(Errno::EPERM));
    let counters = Counters::default();
    send(&mut sender, &[100, 101, 102, 103], SOURCE, &counters);
    let firsts: Vec<u8> = sent.borrow().iter().flat_map(|(firsts, _)| firsts.clone()).collect();
    assert_eq!((firsts, count(&counters, "no_route")), (vec![0, 1, 3], 1));
}

#[test]
fn only_runs_are_tried_again() {
    for error in [Errno::EIO, Errno::EINVAL, Errno::EMSGSIZE, Errno::ENETUNREACH, Errno::EPERM] {
        assert_eq!(Refused::by(error, false, false), Refused::Lost, "{error}");
    }
    assert_eq!(Refused::by(Errno::EIO, true, true), Refused::NoRuns);
    assert_eq!(Refused::by(Errno::EMSGSIZE, true, true), Refused::NotThisRun);
    assert_eq!(Refused::by(Errno::EINVAL, true, false), Refused::NotThisRun);
    assert_eq!(Refused::by(Errno::ENETUNREACH, true, false), Refused::Lost);
    assert_eq!(Refused::by(Errno::EINVAL, false, true), Refused::NotFromThere);
    assert_eq!(Refused::by(Errno::ENETUNREACH, true, true), Refused::NotFromThere);
    assert_eq!(Refused::by(Errno::EPERM, false, true), Refused::Lost);
}
