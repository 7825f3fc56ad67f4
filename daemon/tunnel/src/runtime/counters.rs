//! What the sockets and the TUN did not take, in the same spirit as the device's own counters.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::Count;

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
    /// A packet from the TUN that contradicts its own vnet header, or carries nothing.
    Malformed,
    /// A received message of which the end is missing, or of which the sender cannot be told.
    Truncated,
    /// A packet that the TUN had for us and could not give.
    TunUnreadable,
    /// A run of datagrams that a path does not take in one piece; they were sent one by one. Nothing is lost.
    RunRefused,
    /// A lane that has given up sending runs, since a path takes none at all. Nothing is lost.
    SegmentationRefused,
    /// An interface of several lanes that may not have an eBPF program, so that flows change lanes. Nothing is lost.
    SteeringRefused,
    /// A super-packet that the TUN does not take; its packets were written one by one. Nothing is lost.
    SuperPacketRefused,
    /// A message that could not come from the address at which the peer reaches us, which is ours no longer; it was sent
    /// from another. Nothing is lost.
    SourceRefused,
}

const ALL: [Io; 11] = [
    Io::NoRoute,
    Io::Congested,
    Io::TunRefused,
    Io::Malformed,
    Io::Truncated,
    Io::TunUnreadable,
    Io::RunRefused,
    Io::SegmentationRefused,
    Io::SteeringRefused,
    Io::SuperPacketRefused,
    Io::SourceRefused,
];

impl Io {
    /// The name in metrics.
    fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Congested => "congested",
            Self::TunRefused => "tun_refused",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::TunUnreadable => "tun_unreadable",
            Self::RunRefused => "run_refused",
            Self::SegmentationRefused => "segmentation_refused",
            Self::SteeringRefused => "steering_refused",
            Self::SuperPacketRefused => "super_packet_refused",
            Self::SourceRefused => "source_refused",
        }
    }

    /// Whether the packet is lost.
    fn is_loss(self) -> bool {
        match self {
            Self::NoRoute
            | Self::Congested
            | Self::TunRefused
            | Self::Malformed
            | Self::Truncated
            | Self::TunUnreadable => true,
            Self::RunRefused
            | Self::SegmentationRefused
            | Self::SteeringRefused
            | Self::SuperPacketRefused
            | Self::SourceRefused => false,
        }
    }
}

/// One counter for each.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; ALL.len()]);

impl Counters {
    pub(super) fn count(&self, what: Io, times: usize) {
        self.0[what as usize].fetch_add(times as u64, Ordering::Relaxed);
    }

    /// The counters of what was lost, or of what was not, by name.
    pub fn counts(&self, lost: bool) -> impl Iterator<Item = Count> {
        let failures = ALL.into_iter().filter(move |what| what.is_loss() == lost);
        failures.map(|what| (what.name(), self.0[what as usize].load(Ordering::Relaxed)))
    }
}
