//! What the sockets and the TUN did not take, in the same spirit as the device's own counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Io {
    /// A datagram that the network stack refused: no route, forbidden by a filter, too large.
    NoRoute,
    /// A datagram for which there was no room in the socket's buffer, even after waiting.
    Congested,
    /// A decrypted packet that the TUN refused: the interface is down, or out of memory.
    TunRefused,
    /// A packet from the TUN that contradicts its own vnet header.
    Malformed,
    /// A run of datagrams that a path does not take in one piece; they were sent one by one. Nothing is lost.
    RunRefused,
    /// A super-packet that the TUN does not take; its packets were written one by one. Nothing is lost.
    SuperPacketRefused,
    /// A message that could not come from the address at which the peer reaches us, which is ours no longer; it was sent
    /// from another. Nothing is lost.
    SourceRefused,
}

const ALL: [Io; 7] = [
    Io::NoRoute,
    Io::Congested,
    Io::TunRefused,
    Io::Malformed,
    Io::RunRefused,
    Io::SuperPacketRefused,
    Io::SourceRefused,
];

/// One counter for each.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; ALL.len()]);

impl Counters {
    pub(super) fn count(&self, what: Io, times: usize) {
        self.0[what as usize].fetch_add(times as u64, Ordering::Relaxed);
    }

    /// All counters that are not zero.
    pub fn snapshot(&self) -> Vec<(Io, u64)> {
        ALL.into_iter()
            .map(|what| (what, self.0[what as usize].load(Ordering::Relaxed)))
            .filter(|(_, count)| *count != 0)
            .collect()
    }
}
