//! What a new configuration does to a session, and what a session tells of itself.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use boringtun::noise::Tunn;

use super::{
    ANSWERS, Answering, INDICES, Keys, REJECT_AFTER_TIME, REKEY_AT_LAST, RETIRING, Retiring, SENDS, Session,
};
use crate::device::config::Identity;
use crate::uapi::{PeerState, SecretKey};

impl Session {
    pub(in crate::device) fn want_keepalive(&mut self) {
        self.keepalive_wanted = true;
    }

    pub(in crate::device) fn endpoint(&self) -> Option<SocketAddr> {
        self.path.map(|path| path.remote)
    }

    pub(in crate::device) fn set_endpoint(&mut self, endpoint: SocketAddr) {
        self.path = Some(endpoint.into());
    }

    /// Whether `psk` (all zeros: none) is another one than now.
    pub(in crate::device) fn psk_differs(&self, psk: &SecretKey) -> bool {
        match &self.psk {
            Some(now) => now != psk,
            None => **psk != [0; 32],
        }
    }

    /// Takes another PSK; packets flow under the old one until a handshake succeeded with the new one.
    /// `fresh` is the new index; returns one that is no longer used.
    pub(in crate::device) fn set_psk(&mut self, psk: &SecretKey, fresh: u32, now: Instant) -> Option<u32> {
        self.psk = Some(psk.clone()).filter(|psk| **psk != [0; 32]);
        self.retire(fresh, now)
    }

    /// The own private key changed or went: nothing more is sent under old keys.
    pub(in crate::device) fn new_identity(&mut self, fresh: u32, now: Instant) -> Option<u32> {
        let unused = self.retire(fresh, now);
        for old in &mut self.retiring {
            old.may_send = false;
        }
        unused
    }

    /// Starts afresh under another index, with nothing answered.
    fn retire(&mut self, fresh: u32, now: Instant) -> Option<u32> {
        self.free.extend(self.answering.take().map(|answering| answering.index));
        self.replace_current(Keys { index: fresh, tunn: None, live: false }, true, now)
    }

    /// Puts `next` in place of the current keys, which become the newest of the retiring ones if they were
    /// agreed on. Returns an index that is no longer used: theirs, or the oldest where too many would be kept.
    fn replace_current(&mut self, next: Keys, may_send: bool, now: Instant) -> Option<u32> {
        let useful = self.current.live;
        let former = std::mem::replace(&mut self.current, next);
        let Some(tunn) = former.tunn.filter(|_| useful) else { return Some(former.index) };
        let until = self.established.unwrap_or(now) + REJECT_AFTER_TIME;
        self.retiring.push(Retiring { index: former.index, tunn, may_send, until });
        (self.retiring.len() > RETIRING).then(|| self.retiring.remove(0).index)
    }

    /// The indices under which messages for this session arrive.
    pub(in crate::device) fn indices(&self) -> impl Iterator<Item = u32> {
        let answering = self.answering.iter().map(|answering| answering.index);
        let retiring = self.retiring.iter().map(|old| old.index);
        [self.current.index].into_iter().chain(answering).chain(retiring).chain(self.free.iter().copied())
    }

    /// The `Tunn` that answers initiations now.
    pub(super) fn answering(&mut self, identity: &Identity, now: Instant) -> Option<&mut Tunn> {
        let stale = |answering: &mut Answering| now.saturating_duration_since(answering.built) >= ANSWERS;
        self.free.extend(self.answering.take_if(stale).map(|answering| answering.index));
        if self.answering.is_none() {
            let mut keys = Keys { index: self.free.pop()?, tunn: None, live: false };
            keys.build(identity, &self.peer, &self.psk);
            self.answering = keys.tunn.map(|tunn| Answering { index: keys.index, tunn, built: now });
            if let (Some(answering), Some(answered)) = (&mut self.answering, &self.answered) {
                // Our answer to it, which nobody gets, has 92 bytes.
                let _ = answering.tunn.decapsulate(None, answered, &mut [0; 256]);
            }
        }
        self.answering.as_mut().map(|answering| &mut *answering.tunn)
    }

    /// The peer has used the keys we answered with: they are the current ones. It may still send under the
    /// former, or have them in flight.
    pub(super) fn confirm(&mut self, now: Instant) {
        let Some(Answering { index, tunn, .. }) = self.answering.take() else { return };
        let unused = self.replace_current(Keys { index, tunn: Some(tunn), live: true }, false, now);
        self.free.extend(unused);
    }

    /// Drops keys whose time is over. Returns an index that is no longer needed.
    pub(super) fn forget_old_keys(&mut self, now: Instant) -> Option<u32> {
        let old =
            |answering: &mut Answering| now.saturating_duration_since(answering.built) >= REJECT_AFTER_TIME;
        self.free.extend(self.answering.take_if(old).map(|answering| answering.index));
        self.free.extend(self.retiring.extract_if(.., |old| now >= old.until).map(|old| old.index));
        // New keys of ours bring an index of their own.
        if self.free.len() >= INDICES { self.free.pop() } else { None }
    }

    /// Whether the keys in use will soon be too old, and somebody sends under them.
    pub(super) fn is_late_for_rekey(&self, now: Instant) -> bool {
        let since = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
        self.current.live
            && since(self.established).is_some_and(|age| age >= REKEY_AT_LAST)
            && since(self.last_sent).is_some_and(|idle| idle < SENDS)
    }

    /// Copies what `get=1` reports.
    pub(in crate::device) fn report(&self, state: &mut PeerState) {
        state.preshared_key.clone_from(&self.psk);
        state.endpoint = state.endpoint.or(self.endpoint());
        state.rx_bytes += self.rx_bytes;
        state.tx_bytes += self.tx_bytes;
        let handshake = self.last_handshake.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        state.last_handshake = state.last_handshake.max(handshake);
    }
}
