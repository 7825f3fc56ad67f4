//! What the kernel does rarely: interrupted lists, lost answers, signals.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::*;

const INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
/// Any kind that is an entry of a list.
const ENTRY: u16 = libc::RTM_NEWLINK;

/// What happens at the next call of the socket.
enum Step {
    Sends,
    Fails(i32),
    /// A piece of the answer: kinds, flags and bodies, as answers to the last request, or to one so many before.
    Answers(Vec<(u16, u16, u32, Vec<u8>)>),
}

/// A kernel that does what is written down, and nothing after that.
#[derive(Clone, Default)]
struct Script {
    steps: Rc<RefCell<VecDeque<Step>>>,
    sequence: Rc<Cell<u32>>,
}

impl Script {
    fn then(self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps.borrow_mut().extend(steps);
        self
    }

    fn next(&self) -> Step {
        self.steps.borrow_mut().pop_front().expect("more is asked for than is written down")
    }
}

impl Wire for Script {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.next() {
            Step::Sends => {
                let mut rest = bytes;
                while let Some((request, after)) = Message::first(rest) {
                    self.sequence.set(request.sequence);
                    rest = after;
                }
                Ok(bytes.len())
            }
            Step::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
            Step::Answers(_) => panic!("a request instead of the answer's next piece"),
        }
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.next() {
            Step::Answers(messages) => {
                for (kind, flags, before, body) in messages {
                    let length = HEADER + body.len();
                    buffer.extend_from_slice(&(length as u32).to_ne_bytes());
                    buffer.extend_from_slice(&kind.to_ne_bytes());
                    buffer.extend_from_slice(&flags.to_ne_bytes());
                    buffer.extend_from_slice(&(self.sequence.get() - before).to_ne_bytes());
                    buffer.extend_from_slice(&[0; 4]);
                    buffer.extend_from_slice(&body);
                    buffer.resize(aligned(buffer.len()), 0);
                }
                Ok(buffer.len())
            }
            Step::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
            Step::Sends => panic!("the answer has no more pieces"),
        }
    }

    fn make_room(&self, _bytes: usize) {}
}

fn entry(number: u8) -> (u16, u16, u32, Vec<u8>) {
    (ENTRY, 0, 0, vec![number])
}

fn end() -> (u16, u16, u32, Vec<u8>) {
    (DONE, 0, 0, vec![0; 4])
}

/// The answer to a change, or to one so many before: 0 if it was made, or why not.
fn answer(before: u32, errno: i32) -> (u16, u16, u32, Vec<u8>) {
    (ERROR, 0, before, (-errno).to_ne_bytes().to_vec())
}

/// A list that is interrupted before its second piece.
fn interrupted() -> [Step; 3] {
    let (kind, _, before, body) = entry(9);
    let (done, _, _, zero) = end();
    let rest = vec![(kind, INTERRUPTED, before, body), (done, INTERRUPTED, 0, zero)];
    [Step::Sends, Step::Answers(vec![entry(8)]), Step::Answers(rest)]
}

fn list(socket: &mut Socket<Script>) -> io::Result<Vec<u8>> {
    let mut request = Request::new(libc::RTM_GETLINK, 0, &[0; 16]);
    socket.dump(&mut request, |found: &mut Vec<u8>, message| found.extend_from_slice(message))
}

/// One change, as often as that takes; the errors as the kernel's numbers.
fn change(socket: &mut Socket<Script>) -> Result<(), Option<i32>> {
    let mut request = Request::new(libc::RTM_NEWADDR, 0, &[0; 8]);
    patiently(|| socket.get(&mut request, |(), _| {})).map_err(|error| error.raw_os_error())
}

/// Two changes in one call: which of them were refused, and why.
fn changes(socket: &mut Socket<Script>) -> Result<Vec<(usize, Option<i32>)>, Option<i32>> {
    let request = || Request::new(libc::RTM_NEWROUTE, 0, &[0; 12]);
    let refused = socket.change(&mut [request(), request()]).map_err(|error| error.raw_os_error())?;
    Ok(refused.into_iter().map(|(index, error)| (index, error.raw_os_error())).collect())
}

/// Nothing more is asked for than was written down, and nothing less.
fn finished(script: &Script) {
    assert!(script.steps.borrow().is_empty(), "{} steps were not taken", script.steps.borrow().len());
}

#[test]
fn an_interrupted_list_is_read_again() {
    let whole = [Step::Sends, Step::Answers(vec![entry(1), entry(2)]), Step::Answers(vec![entry(3), end()])];
    let script = Script::default().then(interrupted()).then(interrupted()).then(whole);
    let mut socket = Socket::over(script.clone());
    assert_eq!(list(&mut socket).unwrap(), [1, 2, 3]);
    assert_eq!(socket.counts(), Counts { sent: 3, interrupted: 2 });
    finished(&script);
}

#[test]
fn a_list_that_never_stands_still_is_an_error() {
    let script = Script::default().then((0..TRIES).flat_map(|_| interrupted()));
    assert!(list(&mut Socket::over(script.clone())).unwrap_err().to_string().contains("changed"));
    finished(&script);
}

#[test]
fn a_signal_is_no_error() {
    let script = Script::default().then([
        Step::Fails(libc::EINTR),
        Step::Sends,
        Step::Fails(libc::EINTR),
        Step::Fails(libc::EINTR),
        Step::Answers(vec![entry(1), end()]),
    ]);
    assert_eq!(list(&mut Socket::over(script.clone())).unwrap(), [1]);
    finished(&script);
}

#[test]
fn lost_answers_are_an_error_and_late_ones_are_not_the_next_list() {
    for errno in [libc::ENOBUFS, libc::EAGAIN, libc::ENOMEM] {
        let late = |number| (ENTRY, 0, 1, vec![number]);
        let old_end = (DONE, 0, 1, vec![0; 4]);
        let script = Script::default().then([
            Step::Sends,
            Step::Answers(vec![entry(8)]),
            Step::Fails(errno),
            // Asked again, the kernel still hands out the rest of before.
            Step::Sends,
            Step::Answers(vec![late(9), old_end]),
            Step::Answers(vec![entry(1), end()]),
        ]);
        let mut socket = Socket::over(script.clone());
        assert_eq!(list(&mut socket).unwrap_err().raw_os_error(), Some(errno));
        assert_eq!(list(&mut socket).unwrap(), [1]);
        finished(&script);
    }
}

#[test]
fn a_refused_list_is_an_error() {
    let script = Script::default().then([Step::Sends, Step::Answers(vec![answer(0, libc::EPERM)])]);
    assert_eq!(list(&mut Socket::over(script.clone())).unwrap_err().raw_os_error(), Some(libc::EPERM));
    finished(&script);
}

#[test]
fn signals_without_end_are_an_error() {
    let script = Script::default().then((0..TRIES).map(|_| Step::Fails(libc::EINTR)));
    assert_eq!(list(&mut Socket::over(script.clone())).unwrap_err().raw_os_error(), Some(libc::EINTR));
    finished(&script);
}

#[test]
fn a_change_is_asked_for_again_when_the_kernel_had_no_room_or_was_interrupted() {
    let lost = || [Step::Sends, Step::Fails(libc::ENOBUFS)];
    let unsent = || [Step::Fails(libc::ENOBUFS)];
    let refused = |errno| [Step::Sends, Step::Answers(vec![answer(0, errno)])];
    let script = Script::default()
        .then(lost())
        // What was answered before is still handed out.
        .then([Step::Sends, Step::Answers(vec![answer(1, 0)]), Step::Answers(vec![answer(0, libc::EINTR)])])
        .then(refused(0))
        .then(unsent())
        .then(refused(libc::ENOBUFS))
        .then(refused(0));
    let mut socket = Socket::over(script.clone());
    assert_eq!(change(&mut socket), Ok(()));
    assert_eq!(change(&mut socket), Ok(()));
    finished(&script);
}

#[test]
fn a_change_is_not_asked_for_for_ever() {
    for errno in [libc::ENOBUFS, libc::EINTR] {
        let script = Script::default()
            .then((0..ATTEMPTS).flat_map(|_| [Step::Sends, Step::Answers(vec![answer(0, errno)])]))
            .then([Step::Sends, Step::Answers(vec![answer(0, 0)])]);
        let mut socket = Socket::over(script.clone());
        assert_eq!(change(&mut socket), Err(Some(errno)));
        // What failed is over: the next change is made.
        assert_eq!(change(&mut socket), Ok(()));
        finished(&script);
    }
    let script = Script::default().then([Step::Sends, Step::Answers(vec![answer(0, libc::EPERM)])]);
    assert_eq!(change(&mut Socket::over(script.clone())), Err(Some(libc::EPERM)));
    finished(&script);
}

#[test]
fn late_refusals_are_not_those_of_the_next_changes() {
    let script = Script::default().then([
        Step::Sends,
        Step::Fails(libc::ENOBUFS),
        Step::Sends,
        Step::Answers(vec![answer(3, libc::EEXIST), answer(2, 0)]),
        Step::Answers(vec![answer(1, libc::ENODEV)]),
        Step::Answers(vec![answer(0, 0)]),
    ]);
    let mut socket = Socket::over(script.clone());
    assert_eq!(changes(&mut socket), Err(Some(libc::ENOBUFS)));
    assert_eq!(changes(&mut socket), Ok(vec![(0, Some(libc::ENODEV))]));
    finished(&script);
}
