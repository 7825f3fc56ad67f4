//! When a session has to do something by itself (whitepaper section 6). Pure: what happened and the time come in.
//!
//! | what | when |
//! | --- | --- |
//! | a handshake, again | the last try is 5 s and a third at most without answer, for 90 s |
//! | a handshake | we send under keys that we asked for 120 s ago, or receive under those that will end in 15 s |
//! | a handshake | we send under anybody's keys that will end in 10 s, or, for one of two peers, in 6 s |
//! | a handshake | of 15 s of data that we sent, the peer has confirmed none |
//! | a keepalive | data came 10 s ago, and nothing went since |
//! | a keepalive | nothing went in either direction for the configured interval |

use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore};

use super::keys::REJECT_AFTER_TIME;

/// Keys are renewed after so long by whoever has asked for them.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// How long an answer is waited for, at least.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer at most, at random: those who began at once come apart.
const JITTER_MS: u64 = 333;
/// For how long a handshake is tried.
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Whoever has received something says so after this time at the latest.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer of which nothing is heard for so long is perhaps without our keys.
const SILENCE: Duration = KEEPALIVE_TIMEOUT.saturating_add(REKEY_TIMEOUT);
/// When also who only receives asks for new keys.
const REKEY_ON_RECEIVING: Duration = REJECT_AFTER_TIME.saturating_sub(SILENCE);
/// Without new keys by then, whoever sends asks for them, initiator or not: when two initiations cross, both
/// sides may end up as the one that was asked. Later than the initiator's last moment to do it.
const REKEY_AT_LAST: Duration = Duration::from_secs(170);
/// One of the two does it so much later, or they would cross again, for ever.
const COURTESY: Duration = Duration::from_secs(4);

/// See the module's text.
#[derive(Default)]
pub struct Timers {
    attempt: Option<Attempt>,
    /// When data was sent first, since the peer was heard last.
    unanswered: Option<Instant>,
    /// When data came first, since we sent anything last.
    owed: Option<Instant>,
    /// When anything was last sent under keys, keepalives among it.
    sent: Option<Instant>,
    /// When a packet of a user was last sent.
    sent_data: Option<Instant>,
    /// When data last came.
    received_data: Option<Instant>,
    /// When anything authentic last went in either direction.
    traversal: Option<Instant>,
}

/// A handshake that is under way.
#[derive(Clone, Copy)]
struct Attempt {
    began: Instant,
    next: Instant,
}

/// What decides when keys are too old.
#[derive(Clone, Copy)]
pub struct Age {
    /// When they were agreed on.
    pub since: Instant,
    /// Whether we have asked for them. Then it is for us to ask for the next.
    pub initiator: bool,
    /// Whether they have served for enough messages.
    pub worn_out: bool,
    /// Whether it is for the peer to ask first where both may: the same for all keys of two peers, and not for both.
    pub courteous: bool,
}

/// What to do about handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// To send an initiation, perhaps once more.
    Initiation,
    /// To give up: nobody answers.
    GiveUp,
}

impl Timers {
    /// Something was sent under keys; `data`: it was no keepalive.
    pub fn sent(&mut self, data: bool, now: Instant) {
        self.owed = None;
        self.sent = Some(now);
        self.traversal = Some(now);
        if data {
            self.sent_data = Some(now);
            self.unanswered.get_or_insert(now);
        }
    }

    /// A handshake message was sent.
    pub fn sent_handshake(&mut self, now: Instant) {
        self.owed = None;
        self.traversal = Some(now);
    }

    /// Something authentic came.
    pub fn received(&mut self, data: bool, now: Instant) {
        self.unanswered = None;
        self.traversal = Some(now);
        if data {
            self.received_data = Some(now);
            self.owed.get_or_insert(now);
        }
    }

    /// An initiation was sent.
    pub fn initiated(&mut self, now: Instant) {
        self.sent_handshake(now);
        // Who asks anew is not silent: the answer is waited for.
        self.unanswered = None;
        let began = self.attempt.map_or(now, |attempt| attempt.began);
        self.attempt = Some(Attempt { began, next: now + REKEY_TIMEOUT + jitter() });
    }

    /// Whether an answer is waited for.
    pub fn is_waiting(&self) -> bool {
        self.attempt.is_some()
    }

    /// There are new keys, or they are no longer wanted.
    pub fn end_handshake(&mut self) {
        self.attempt = None;
    }

    /// A keepalive is on its way, or what stands for it.
    pub fn postpone_keepalive(&mut self, now: Instant) {
        self.traversal = Some(now);
    }

    /// What to do about handshakes, with these keys to send under.
    pub fn handshake_due(&self, keys: Option<Age>, now: Instant) -> Due {
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some(attempt) = self.attempt {
            return match (now >= attempt.next, since(attempt.began) >= REKEY_ATTEMPT_TIME) {
                (_, true) => Due::GiveUp,
                (true, false) => Due::Initiation,
                (false, false) => Due::Nothing,
            };
        }
        let silent = self.unanswered.is_some_and(|first| since(first) >= SILENCE);
        if silent || keys.is_some_and(|keys| self.is_time_for_new(keys, now)) {
            Due::Initiation
        } else {
            Due::Nothing
        }
    }

    /// Whether these keys will soon be too old, and are used.
    fn is_time_for_new(&self, keys: Age, now: Instant) -> bool {
        let reached = |then: Option<Instant>, age| then.is_some_and(|then| then >= keys.since + age);
        let at_last = if keys.courteous { REKEY_AT_LAST + COURTESY } else { REKEY_AT_LAST };
        let sends = self.sent_data.is_some_and(|last| now.saturating_duration_since(last) < SILENCE);
        keys.worn_out
            || keys.initiator && reached(self.sent, REKEY_AFTER_TIME)
            || keys.initiator && reached(self.received_data, REKEY_ON_RECEIVING)
            || sends && reached(Some(now), at_last)
    }

    /// Whether the peer is to hear that what it sent has come.
    pub fn owes_keepalive(&self, now: Instant) -> bool {
        self.owed.is_some_and(|first| now.saturating_duration_since(first) >= KEEPALIVE_TIMEOUT)
    }

    /// Whether nothing went for this time.
    pub fn is_idle_for(&self, interval: Duration, now: Instant) -> bool {
        self.traversal.is_none_or(|last| now.saturating_duration_since(last) >= interval)
    }
}

fn jitter() -> Duration {
    Duration::from_millis(u64::from(OsRng.next_u32()) % (JITTER_MS + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(250);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn age(since: Instant, initiator: bool) -> Option<Age> {
        Some(Age { since, initiator, worn_out: false, courteous: false })
    }

    /// When `due` is first true, looking as often as a device does.
    fn first(from: Instant, due: impl Fn(Instant) -> bool) -> Option<Duration> {
        (0..4000).map(|tick| TICK * tick).find(|after| due(from + *after))
    }

    #[test]
    fn only_who_asked_for_keys_renews_them_when_sending() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let asks = |timers: &Timers, initiator, at| {
            timers.handshake_due(age(start, initiator), start + at) == Due::Initiation
        };
        timers.sent(false, start + s(119));
        assert!(!asks(&timers, true, s(150)), "nobody has sent since they are old");
        // A keepalive is enough, as in the kernel: else keys of a pair that only keeps alive would end.
        timers.sent(false, start + s(120));
        assert!(asks(&timers, true, s(120)));
        assert!(!asks(&timers, false, s(120)));
        assert!(!asks(&timers, false, s(179)), "keepalives alone do not make who was asked ask");
    }

    #[test]
    fn who_only_receives_renews_keys_before_they_end() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let due = |timers: &Timers, initiator| timers.handshake_due(age(start, initiator), start + s(165));
        timers.received(true, start + s(164));
        assert_eq!(due(&timers, true), Due::Nothing);
        timers.received(false, start + s(165));
        assert_eq!(due(&timers, true), Due::Nothing, "a keepalive");
        timers.received(true, start + s(165));
        assert_eq!((due(&timers, true), due(&timers, false)), (Due::Initiation, Due::Nothing));
    }

    #[test]
    fn whoever_sends_renews_keys_at_last() {
        let start = Instant::now();
        for (sent, asks) in [(154, false), (156, true)] {
            let mut timers = Timers::default();
            timers.sent(true, start + s(sent));
            timers.received(false, start + s(sent));
            let due = |at| timers.handshake_due(age(start, false), start + at) == Due::Initiation;
            assert!(!due(REKEY_AT_LAST - TICK));
            assert_eq!(due(REKEY_AT_LAST), asks, "last sent at {sent}");
            let keys = Age { since: start, initiator: false, worn_out: false, courteous: true };
            timers.sent(true, start + s(sent + 4));
            timers.received(false, start + s(sent + 4));
            let due = |at| timers.handshake_due(Some(keys), start + at) == Due::Initiation;
            assert!(!due(REKEY_AT_LAST + COURTESY - TICK));
            assert_eq!(
                due(REKEY_AT_LAST + COURTESY),
                asks,
                "last sent at {sent}, and lets the peer go first"
            );
        }
    }

    #[test]
    fn worn_out_keys_are_renewed() {
        let now = Instant::now();
        let keys = Age { since: now, initiator: false, worn_out: true, courteous: true };
        assert_eq!(Timers::default().handshake_due(Some(keys), now), Due::Initiation);
    }

    #[test]
    fn data_that_nobody_confirms_makes_a_handshake() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let due = |timers: &Timers| first(start, |now| timers.handshake_due(None, now) == Due::Initiation);
        timers.sent(false, start);
        assert_eq!(due(&timers), None, "a keepalive is not confirmed");
        timers.sent(true, start + s(1));
        timers.sent(true, start + s(14));
        assert_eq!(due(&timers), Some(s(16)), "from the first of them on");
        timers.received(false, start + s(15));
        assert_eq!(due(&timers), None);
        timers.sent(true, start + s(20));
        assert_eq!(due(&timers), Some(s(35)));
        timers.initiated(start + s(35));
        timers.end_handshake();
        assert_eq!(due(&timers), None, "it was asked");
    }

    #[test]
    fn an_initiation_is_repeated_with_jitter_and_then_given_up() {
        let start = Instant::now();
        let (mut shortest, mut longest) = (Duration::MAX, Duration::ZERO);
        for _ in 0..50 {
            let mut timers = Timers::default();
            timers.initiated(start);
            let mut last = start;
            let (mut tries, mut ms) = (1, 0);
            let end = loop {
                let now = start + Duration::from_millis(ms);
                match timers.handshake_due(None, now) {
                    Due::Nothing => ms += 1,
                    Due::Initiation => {
                        (shortest, longest) = (shortest.min(now - last), longest.max(now - last));
                        timers.initiated(now);
                        last = now;
                        tries += 1;
                    }
                    Due::GiveUp => break now - start,
                }
                assert!(timers.is_waiting());
            };
            assert_eq!(end, REKEY_ATTEMPT_TIME);
            assert!((17..=18).contains(&tries), "{tries}");
        }
        assert!(
            (REKEY_TIMEOUT..REKEY_TIMEOUT + Duration::from_millis(20)).contains(&shortest),
            "{shortest:?}"
        );
        let most = REKEY_TIMEOUT + Duration::from_millis(JITTER_MS);
        assert!((most - Duration::from_millis(20)..=most).contains(&longest), "{longest:?}");
    }

    #[test]
    fn data_is_confirmed_once() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let due = |timers: &Timers| first(start, |now| timers.owes_keepalive(now));
        timers.received(false, start);
        assert_eq!(due(&timers), None, "keepalives are not confirmed");
        timers.received(true, start + s(1));
        timers.received(true, start + s(9));
        assert_eq!(due(&timers), Some(s(11)), "10 s after the first");
        timers.sent(false, start + s(11));
        assert_eq!(due(&timers), None);
        timers.received(true, start + s(12));
        timers.sent_handshake(start + s(13));
        assert_eq!(due(&timers), None, "anything confirms");
    }

    #[test]
    fn a_pair_is_idle_when_nothing_went_in_either_direction() {
        let start = Instant::now();
        let mut timers = Timers::default();
        assert!(timers.is_idle_for(s(25), start), "at once at first");
        timers.received(false, start);
        assert!(!timers.is_idle_for(s(25), start + s(24)));
        timers.sent(false, start + s(24));
        assert!(!timers.is_idle_for(s(25), start + s(48)));
        assert!(timers.is_idle_for(s(25), start + s(49)));
    }
}
