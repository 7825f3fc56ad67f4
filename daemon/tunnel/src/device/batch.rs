//! Output buffers that are filled packet by packet and emptied batch by batch, without allocating.

use std::net::{IpAddr, SocketAddr};

/// The largest datagram or IP packet there can be, in bytes.
pub const MAX_PACKET: usize = 65_535;

/// What one packet may need in a batch: the packet, WireGuard's 32 bytes around it, 15 of padding, and
/// never less than a handshake initiation.
pub const ROOM: usize = MAX_PACKET + 64;

/// Encrypted datagrams and where they go.
pub type Datagrams = Batch<Destination>;

/// Decrypted IP packets, checked and ready for the TUN.
pub type Packets = Batch<()>;

/// How a datagram leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// By which lane's socket.
    pub lane: usize,
    /// To which address.
    pub to: SocketAddr,
    /// From which of our own addresses; `None` leaves it to the routes.
    pub from: Option<IpAddr>,
}

/// A way between a peer and us, as datagrams take it in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The peer's end.
    pub remote: SocketAddr,
    /// Our address at which the peer reaches us, once known. Answers come from there, as those of the kernel's WireGuard
    /// do (`socket.c`): a peer that follows where our packets come from would otherwise be led to another address.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Path {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

impl Path {
    /// What leaves by a lane's socket on this way.
    pub(super) fn by(self, lane: usize) -> Destination {
        Destination { lane, to: self.remote, from: self.local }
    }
}

/// Items of a batch that lie behind each other and belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a, T> {
    /// All their bytes.
    pub bytes: &'a [u8],
    /// The length of each but the last.
    pub segment: usize,
    /// How many they are.
    pub count: usize,
    /// What is noted with each of them.
    pub note: &'a T,
}

/// Byte strings one behind the other in one fixed allocation, each with a note `T`.
///
/// They lie contiguously so that equal ones for one destination can leave as one segmented send.
pub struct Batch<T> {
    bytes: Box<[u8]>,
    used: usize,
    items: Vec<(usize, T)>,
    capacity: usize,
}

impl<T> Batch<T> {
    /// A batch that takes up to `items` items. Its bytes are four of the largest packets or `items` of
    /// 2 KiB, whatever is more; memory that is never filled is never touched, so it costs nothing.
    pub fn new(items: usize) -> Self {
        let bytes = (items * 2048).max(4 * ROOM);
        Self {
            bytes: vec![0; bytes].into_boxed_slice(),
            used: 0,
            items: Vec::with_capacity(items),
            capacity: items,
        }
    }

    /// Whether an item of any size still fits. The caller empties the batch when not.
    pub fn has_room(&self) -> bool {
        self.items.len() < self.capacity && self.bytes.len() - self.used >= ROOM
    }

    /// The free bytes behind the last item, to write the next one into. At least [`ROOM`] of them while
    /// [`has_room`](Self::has_room).
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used..]
    }

    /// Makes the first `len` bytes of [`room`](Self::room) an item.
    pub(super) fn commit(&mut self, len: usize, note: T) {
        self.used += len;
        self.items.push((self.used, note));
    }

    /// Adds an item that lies elsewhere. The caller has seen that there is room.
    pub fn push(&mut self, item: &[u8], note: T) {
        self.room()[..item.len()].copy_from_slice(item);
        self.commit(item.len(), note);
    }

    /// The items in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &T)> {
        let mut start = 0;
        self.items.iter().map(move |(end, note)| {
            let item = &self.bytes[start..*end];
            start = *end;
            (item, note)
        })
    }

    /// The items in the order they came, those in runs that may leave as one segmented send: with equal notes, all of
    /// one length but the last, which may be shorter; at most `most` of them, with `most_bytes` together.
    pub fn runs(&self, most: usize, most_bytes: usize) -> impl Iterator<Item = Run<'_, T>>
    where
        T: PartialEq,
    {
        let mut items = self.iter().peekable();
        let mut end = 0;
        std::iter::from_fn(move || {
            let (first, note) = items.next()?;
            let start = end;
            end += first.len();
            let (mut count, mut whole) = (1, true);
            while whole
                && count < most
                && let Some((next, _)) = items.next_if(|(next, other)| {
                    *other == note && next.len() <= first.len() && end - start + next.len() <= most_bytes
                })
            {
                end += next.len();
                count += 1;
                whole = next.len() == first.len();
            }
            Some(Run { bytes: &self.bytes[start..end], segment: first.len(), count, note })
        })
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Forgets all items.
    pub fn clear(&mut self) {
        self.used = 0;
        self.items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(lengths: &[(usize, u8)], most: usize, most_bytes: usize) -> Vec<(usize, usize, usize, u8)> {
        let mut batch = Batch::new(64);
        for (len, note) in lengths {
            batch.commit(*len, *note);
        }
        batch.runs(most, most_bytes).map(|run| (run.bytes.len(), run.segment, run.count, *run.note)).collect()
    }

    #[test]
    fn runs_are_of_one_note_and_one_length_but_for_the_last() {
        let items = [(100, 1), (100, 1), (60, 1), (60, 1), (100, 1), (100, 2), (100, 2), (0, 2), (0, 2)];
        let expected = [(260, 100, 3, 1), (60, 60, 1, 1), (100, 100, 1, 1), (200, 100, 3, 2), (0, 0, 1, 2)];
        assert_eq!(runs(&items, 64, 1000), expected);
        assert_eq!(runs(&[], 64, 1000), []);
    }

    #[test]
    fn runs_have_limits() {
        assert_eq!(runs(&[(100, 1); 5], 2, 1000), [(200, 100, 2, 1), (200, 100, 2, 1), (100, 100, 1, 1)]);
        assert_eq!(runs(&[(100, 1); 5], 9, 299), [(200, 100, 2, 1), (200, 100, 2, 1), (100, 100, 1, 1)]);
        assert_eq!(runs(&[(100, 1); 2], 9, 50), [(100, 100, 1, 1), (100, 100, 1, 1)]);
    }
}
