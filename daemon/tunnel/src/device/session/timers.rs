//! When a session has to do something by itself (whitepaper section 6). Pure: what happened and the time come in.
//!
//! | what | when |
//! | --- | --- |
//! | a handshake, again | the last try is 5 s and a third at most without answer, for 90 s |
//! | a handshake | we send under keys that we asked for 120 s ago, or receive under those that will end in 15 s |
//! | a handshake | we send under anybody's keys that will end in 10 s |
//! | a handshake | of 15 s of data that we sent, the peer has confirmed none |
//! | a keepalive | data came 10 s ago, and nothing went since |
//! | a keepalive | nothing went in either direction for the configured interval |

use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore};

use super::keys::{Keys, REJECT_AFTER_TIME};

/// Keys are renewed after so long by whoever has asked for them.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// How long an answer is waited for, at least.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer at most, at random: those who began at once come apart.
const JITTER_MS: u64 = 333;
/// For how long a handshake is tried.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Whoever has received something says so after this time at the latest.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer of which nothing is heard for so long is perhaps without our keys.
pub const SILENCE: Duration = KEEPALIVE_TIMEOUT.saturating_add(REKEY_TIMEOUT);
/// When also who only receives asks for new keys.
pub const REKEY_ON_RECEIVING: Duration = REJECT_AFTER_TIME.saturating_sub(SILENCE);
/// Without new keys by then, whoever sends asks for them, initiator or not: when two initiations cross, both
/// sides may end up as the one that was asked. Later than the initiator's last moment to do it.
pub const REKEY_AT_LAST: Duration = Duration::from_secs(170);

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
    pub fn handshake_due(&self, keys: Option<&Keys>, now: Instant) -> Due {
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
    fn is_time_for_new(&self, keys: &Keys, now: Instant) -> bool {
        let reached = |then: Option<Instant>, age| then.is_some_and(|then| then >= keys.since + age);
        let sends = self.sent_data.is_some_and(|last| now.saturating_duration_since(last) < SILENCE);
        keys.transport.wants_new_keys()
            || keys.initiator && reached(self.sent, REKEY_AFTER_TIME)
            || keys.initiator && reached(self.received_data, REKEY_ON_RECEIVING)
            || sends && reached(Some(now), REKEY_AT_LAST)
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
