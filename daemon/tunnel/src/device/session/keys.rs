//! The keys of one session, from a handshake to the last packet under them.
//!
//! ```text
//!  we asked ──response──▶ ┌─────────┐  newer ones   ┌──────────┐  180 s after the handshake,
//!                         │ current │ ────────────▶ │ retiring │  or three newer ones
//!                   ┌───▶ └─────────┘               └──────────┘
//!                   │   sends, receives               receives
//!                   │ first packet under them
//!              ┌───────────┐
//!  we answer ▶ │ answering │ receives
//!              └───────────┘
//! ```
//!
//! Three retire at a time, because the peer may send under other keys than we do: where two handshakes have crossed, each
//! end takes those it was asked for. When the next two cross as well, both have two newer ones, and what the peer has sent
//! under its own before may still be on its way.

use std::time::{Duration, Instant};

use super::timers::Age;
use crate::noise::handshake;
use crate::noise::transport::Transport;

/// Keys are not used for longer, in either direction (whitepaper section 6.1). They are forgotten then, earlier than after
/// the three times as long that the whitepaper allows.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// The keys of one handshake.
pub struct Keys {
    /// The session under them. Not in place: it is larger than all else of a peer, and most have one or none.
    pub transport: Box<Transport>,
    since: Instant,
    initiator: bool,
}

impl Keys {
    fn new(keys: &handshake::Keys, initiator: bool, now: Instant) -> Self {
        Self { transport: Box::new(Transport::new(keys)), since: now, initiator }
    }

    /// What decides when the next are due.
    pub fn age(&self, courteous: bool) -> Age {
        let Self { transport, since, initiator } = self;
        Age { since: *since, initiator: *initiator, worn_out: transport.wants_new_keys(), courteous }
    }

    fn lives(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < REJECT_AFTER_TIME
    }
}

/// See the module's text.
#[derive(Default)]
pub struct KeyRing {
    current: Option<Keys>,
    answering: Option<Keys>,
    /// The newest first.
    retiring: [Option<Keys>; 3],
}

impl KeyRing {
    /// Those to send under, if they may still be used.
    pub fn current(&mut self, now: Instant) -> Option<&mut Keys> {
        self.current.as_mut().filter(|keys| keys.lives(now))
    }

    /// Those under which the peer sends to `index`, and whether it proves by that to have those we answered with.
    pub fn receiving(&mut self, index: u32, now: Instant) -> Option<(&mut Keys, bool)> {
        let is = |keys: &&mut Keys| keys.transport.local_index() == index && keys.lives(now);
        let unproved = self.answering.as_mut().filter(is).map(|keys| (keys, true));
        let others = self.current.iter_mut().chain(self.retiring.iter_mut().flatten());
        unproved.or_else(|| others.into_iter().find(is).map(|keys| (keys, false)))
    }

    /// Whether these are those of the answer that nobody has used yet.
    pub fn is_answer(&self, index: u32) -> bool {
        self.answering.as_ref().is_some_and(|keys| keys.transport.local_index() == index)
    }

    /// Whether the peer may be sending to `index`.
    pub fn uses(&self, index: u32) -> bool {
        let all = self.current.iter().chain(&self.answering).chain(self.retiring.iter().flatten());
        all.into_iter().any(|keys| keys.transport.local_index() == index)
    }

    /// The peer has answered us, and so has these.
    pub fn agreed(&mut self, keys: &handshake::Keys, now: Instant) {
        self.replace_current(Some(Keys::new(keys, true, now)));
    }

    /// We have answered the peer, which gets these if the answer arrives. Takes the place of an earlier answer.
    pub fn answered(&mut self, keys: &handshake::Keys, now: Instant) {
        self.answering = Some(Keys::new(keys, false, now));
    }

    /// The peer has used the keys that we answered with: we send under them, too.
    pub fn confirm(&mut self) {
        if let Some(keys) = self.answering.take() {
            self.replace_current(Some(keys));
        }
    }

    /// Nothing more is sent under what is there, but what is in flight still arrives.
    pub fn retire(&mut self) {
        self.forget_answer();
        self.replace_current(None);
    }

    /// The keys we answered with will not do.
    pub fn forget_answer(&mut self) {
        self.answering = None;
    }

    /// Forgets what may not be used any more.
    pub fn expire(&mut self, now: Instant) {
        let all = [&mut self.current, &mut self.answering].into_iter().chain(&mut self.retiring);
        all.for_each(|keys| drop(keys.take_if(|keys| !keys.lives(now))));
    }

    fn replace_current(&mut self, next: Option<Keys>) {
        if let Some(former) = std::mem::replace(&mut self.current, next) {
            self.retiring.rotate_right(1);
            self.retiring[0] = Some(former);
        }
    }

    /// How many keys are held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.current.iter().chain(&self.answering).chain(self.retiring.iter().flatten()).count()
    }
}
