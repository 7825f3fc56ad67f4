//! Packets that wait for keys, or for room in a batch: so many for each session, and so many bytes for all together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::device::drops::Drop as Reason;

/// Packets that wait in one session at most; the kernel keeps 128, boringtun as many as here.
const PACKETS: usize = 256;

/// Bytes that wait on a device at most, beyond one packet for each session: those with which TCP begins (10 segments, RFC
/// 6928) to 570 peers at once, or all that 22 peers may have. It is an eighth of what a tunnel with 200 peers may take
/// (64 MiB); without it, 200 peers that are away would hold 73 MB.
pub const WAITING_BYTES: usize = 8 << 20;

/// What a packet takes beside its bytes: its place in the queue, and the allocator's word, rounded up.
const OVERHEAD: usize = 48;

/// What all queues of a device may still take.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicUsize::new(WAITING_BYTES))
    }
}

impl Budget {
    /// Takes so many bytes, if they are there.
    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is taken.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        WAITING_BYTES - self.0.load(Ordering::Relaxed)
    }
}

/// The queue of one session.
pub struct Queue {
    packets: VecDeque<Waiting>,
    budget: Arc<Budget>,
}

/// One packet, and what it has taken of the budget.
struct Waiting {
    bytes: Box<[u8]>,
    taken: usize,
}

impl Queue {
    /// An empty one.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { packets: VecDeque::new(), budget }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds a packet behind the others.
    ///
    /// # Errors
    /// Why it cannot wait.
    pub fn push(&mut self, packet: &[u8]) -> Result<(), Reason> {
        if self.packets.len() >= PACKETS {
            return Err(Reason::NoKeys);
        }
        let bytes = packet.len() + OVERHEAD;
        let taken = if self.budget.take(bytes) {
            bytes
        } else if self.packets.is_empty() {
            // Peers that are away must not keep the first packet to another from arriving.
            0
        } else {
            return Err(Reason::QueuesFull);
        };
        self.packets.push_back(Waiting { bytes: packet.into(), taken });
        Ok(())
    }

    /// Takes the first packet out. The memory of an empty queue is given back: few ever fill, and fewer twice.
    pub fn pop(&mut self) -> Option<Box<[u8]>> {
        let Waiting { bytes, taken } = self.packets.pop_front()?;
        self.budget.give_back(taken);
        if self.packets.is_empty() {
            self.packets = VecDeque::new();
        }
        Some(bytes)
    }

    /// Drops all; returns how many they were.
    pub fn clear(&mut self) -> usize {
        let packets = std::mem::take(&mut self.packets);
        self.budget.give_back(packets.iter().map(|packet| packet.taken).sum());
        packets.len()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.clear();
    }
}
