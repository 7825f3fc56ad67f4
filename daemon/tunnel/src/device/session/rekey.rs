//! What a new configuration does to a session, and what a session tells of itself.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use super::{Keys, REJECT_AFTER_TIME, Retiring, Session};
use crate::uapi::{PeerState, SecretKey};

impl Session {
    pub(in crate::device) fn want_keepalive(&mut self) {
        self.keepalive_wanted = true;
    }

    pub(in crate::device) fn set_endpoint(&mut self, endpoint: SocketAddr) {
        self.endpoint = Some(endpoint);
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
        if let Some(old) = &mut self.retiring {
            old.may_send = false;
        }
        unused
    }

    /// Makes the current keys, or those already retiring if these have not been of use yet, the retiring
    /// ones.
    fn retire(&mut self, fresh: u32, now: Instant) -> Option<u32> {
        self.unconfirmed = None;
        let former = std::mem::replace(&mut self.current, Keys { index: fresh, tunn: None });
        let useful = former.has_session();
        let until = self.established.filter(|_| useful).unwrap_or(now) + REJECT_AFTER_TIME;
        let older_still_carries = !useful && self.retiring.is_some();
        match former.tunn {
            Some(tunn) if !older_still_carries => {
                let former = Retiring { index: former.index, tunn, may_send: useful, until };
                self.retiring.replace(former).map(|older| older.index)
            }
            _ => Some(former.index),
        }
    }

    /// The indices under which messages for this session arrive.
    pub(in crate::device) fn indices(&self) -> impl Iterator<Item = u32> {
        [Some(self.current.index), self.retiring.as_ref().map(|old| old.index)].into_iter().flatten()
    }

    /// Copies what `get=1` reports.
    pub(in crate::device) fn report(&self, state: &mut PeerState) {
        state.preshared_key.clone_from(&self.psk);
        state.endpoint = state.endpoint.or(self.endpoint);
        state.rx_bytes += self.rx_bytes;
        state.tx_bytes += self.tx_bytes;
        let handshake = self.last_handshake.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        state.last_handshake = state.last_handshake.max(handshake);
    }
}
