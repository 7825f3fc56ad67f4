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
    /// To a peer without keys yet, for which as many packets wait as may, or that did not answer while they waited.
    NoKeys,
    /// To a peer without keys yet, while as many bytes wait for all peers together as may.
    QueuesFull,
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
    /// Data that does not decrypt.
    BadData,
    /// Data whose counter was seen before, or is so old that it cannot be told whether it was.
    ReplayedData,
    /// Data that decrypts to something else than an IP packet.
    BadPacket,
    /// Data whose inner source address is not the sender's allowed IP.
    BadSource,
    /// The caller's batch was full. It was to empty it first.
    NoRoom,
    /// A full batch: the rest of a queue waits for the next tick. Nothing is lost, it is only late.
    Deferred,
}

/// A counter's name and value.
pub type Count = (&'static str, u64);

impl Drop {
    /// All reasons, in the order of the counters.
    pub const ALL: [Self; 18] = [
        Self::NotIp,
        Self::NoPeer,
        Self::NoEndpoint,
        Self::NoKeys,
        Self::QueuesFull,
        Self::NoPrivateKey,
        Self::Invalid,
        Self::UnknownIndex,
        Self::BadHandshake,
        Self::ReplayedHandshake,
        Self::CookieSent,
        Self::RateLimited,
        Self::BadData,
        Self::ReplayedData,
        Self::BadPacket,
        Self::BadSource,
        Self::NoRoom,
        Self::Deferred,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NoPeer => "no_peer",
            Self::NoEndpoint => "no_endpoint",
            Self::NoKeys => "no_keys",
            Self::QueuesFull => "queues_full",
            Self::NoPrivateKey => "no_private_key",
            Self::Invalid => "invalid_message",
            Self::UnknownIndex => "unknown_index",
            Self::BadHandshake => "bad_handshake",
            Self::ReplayedHandshake => "replayed_handshake",
            Self::CookieSent => "cookie_sent",
            Self::RateLimited => "rate_limited",
            Self::BadData => "bad_data",
            Self::ReplayedData => "replayed_data",
            Self::BadPacket => "bad_packet",
            Self::BadSource => "bad_source",
            Self::NoRoom => "no_room",
            Self::Deferred => "deferred",
        }
    }

    /// Whether the packet is lost.
    pub fn is_loss(self) -> bool {
        self != Self::Deferred
    }
}

/// One counter per reason, since the device was created.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; Drop::ALL.len()]);

impl Drops {
    pub(super) fn count(&self, reason: Drop) {
        self.count_all(reason, 1);
    }

    pub(super) fn count_all(&self, reason: Drop, packets: usize) {
        self.0[reason as usize].fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// How often packets were dropped for `reason`.
    pub fn get(&self, reason: Drop) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// The counters of what was lost, or of what was not, by name.
    pub fn counts(&self, lost: bool) -> impl Iterator<Item = Count> {
        let reasons = Drop::ALL.into_iter().filter(move |reason| reason.is_loss() == lost);
        reasons.map(|reason| (reason.name(), self.get(reason)))
    }
}
