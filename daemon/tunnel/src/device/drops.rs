//! What was dropped, and why: the only account of packets that went nowhere.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Drop {
    /// From the TUN: not an IP packet.
    NotIp,
    /// From the TUN: its destination is no peer's allowed IP.
    NoPeer,
    /// To a peer without a known endpoint.
    NoEndpoint,
    /// To a peer without keys yet, for which as many packets wait as may.
    NoKeys,
    /// There is no private key, so no peer can be talked to.
    NoPrivateKey,
    /// A datagram that is no WireGuard message, or a handshake with a wrong MAC.
    Invalid,
    /// A message for a session or handshake that does not exist (any more).
    UnknownIndex,
    /// A handshake of somebody who is no peer, or that cannot be authenticated.
    BadHandshake,
    /// A handshake seen before (its timestamp is not newer), or the next one within 20 ms.
    ReplayedHandshake,
    /// A handshake while under load: answered with a cookie.
    CookieSent,
    /// A handshake while under load, with a cookie, from an address that has sent too many.
    RateLimited,
    /// Data that does not decrypt, or whose counter was seen or is too old.
    BadData,
    /// Data that decrypts to something else than an IP packet.
    BadPacket,
    /// Data whose inner source address is not the sender's allowed IP.
    BadSource,
    /// The caller's batch was full. It was to empty it first.
    NoRoom,
    /// A full batch: the rest of a queue waits for the next tick. Nothing is lost, it is only late.
    Deferred,
}

impl Drop {
    /// All reasons, in the order of the counters.
    pub const ALL: [Self; 16] = [
        Self::NotIp,
        Self::NoPeer,
        Self::NoEndpoint,
        Self::NoKeys,
        Self::NoPrivateKey,
        Self::Invalid,
        Self::UnknownIndex,
        Self::BadHandshake,
        Self::ReplayedHandshake,
        Self::CookieSent,
        Self::RateLimited,
        Self::BadData,
        Self::BadPacket,
        Self::BadSource,
        Self::NoRoom,
        Self::Deferred,
    ];
}

/// One counter per reason, since the device was created.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; Drop::ALL.len()]);

impl Drops {
    pub(super) fn count(&self, reason: Drop) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often packets were dropped for `reason`.
    pub fn get(&self, reason: Drop) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// All counters that are not zero.
    pub fn snapshot(&self) -> Vec<(Drop, u64)> {
        Drop::ALL
            .into_iter()
            .map(|reason| (reason, self.get(reason)))
            .filter(|(_, count)| *count != 0)
            .collect()
    }
}
