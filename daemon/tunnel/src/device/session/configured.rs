//! What a new configuration does to a session, and what a session tells of itself.

use std::net::SocketAddr;
use std::time::SystemTime;

use super::Session;
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

    /// The upper 24 bits of all indices under which messages for this session arrive.
    pub(in crate::device) fn index(&self) -> u32 {
        self.index
    }

    /// Takes another PSK (all zeros: none); packets flow under the present keys until a handshake succeeded with the new
    /// one, which the next packet begins. Those that have begun with the old one come to nothing.
    pub(in crate::device) fn set_psk(&mut self, psk: &SecretKey) {
        if *self.psk == **psk {
            return;
        }
        self.psk.clone_from(psk);
        self.keys.forget_answer();
        self.forget_handshakes();
        self.rekey = true;
    }

    /// The own private key changed or went: nothing more is sent under old keys.
    pub(in crate::device) fn new_identity(&mut self) {
        self.keys.retire();
        self.forget_handshakes();
        self.remote = None;
    }

    /// Copies what `get=1` reports.
    pub(in crate::device) fn report(&self, state: &mut PeerState) {
        state.preshared_key = Some(self.psk.clone()).filter(|psk| **psk != [0; 32]);
        state.endpoint = state.endpoint.or(self.endpoint());
        state.rx_bytes += self.rx_bytes;
        state.tx_bytes += self.tx_bytes;
        let handshake = self.last_handshake.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        state.last_handshake = state.last_handshake.max(handshake);
    }

    /// How many keys there are.
    #[cfg(test)]
    pub(in crate::device) fn keys_held(&self) -> usize {
        self.keys.held()
    }
}
