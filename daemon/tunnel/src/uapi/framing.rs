//! Cutting a byte stream into the protocol's blocks, each closed by an empty line.

use zeroize::{Zeroize as _, Zeroizing};

/// The largest block that is accepted, in bytes. A `set` of 100,000 allowed IPs has about 5 MB; more than
/// three times that is no configuration but an attempt to fill our memory.
pub const MAX_BLOCK: usize = 16 << 20;

/// Text that may hold keys: grows without leaving copies behind, zeroised on drop.
#[derive(Default)]
pub struct SecretText(Zeroizing<Vec<u8>>);

/// What [`SecretText::take_block`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed<T> {
    /// The block is not complete yet.
    Incomplete,
    /// A complete block, up to and with its closing empty line.
    Block(T),
    /// The block is not text, or longer than [`MAX_BLOCK`].
    Invalid,
}

impl SecretText {
    /// Adds bytes as they come from the socket.
    pub fn extend(&mut self, bytes: &[u8]) {
        let wanted = self.0.len() + bytes.len();
        if wanted > self.0.capacity() {
            // Vec's own growth would free the old buffer without zeroising it.
            let capacity = wanted.next_power_of_two().max(self.0.capacity() * 4).max(4096);
            let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Whether the text begins with `start`, or is too short to tell.
    pub fn may_start_with(&self, start: &str) -> bool {
        self.0.iter().zip(start.as_bytes()).all(|(is, wanted)| is == wanted)
    }

    /// Takes the first complete block out, if there is one.
    ///
    /// `scanned` remembers between calls how far the search came, so that a block that arrives in small
    /// pieces costs linear time; it starts at 0 and is 0 again after each block.
    pub fn take_block(&mut self, scanned: &mut usize) -> Framed<Zeroizing<String>> {
        // The pair of line ends may straddle two reads: search again from one byte before.
        let from = scanned.saturating_sub(1).min(self.0.len());
        // A block of nothing but its empty line.
        let end = if self.0.first() == Some(&b'\n') {
            Some(1)
        } else {
            self.0[from..].windows(2).position(|pair| pair == b"\n\n").map(|at| from + at + 2)
        };
        let Some(end) = end else {
            *scanned = self.0.len();
            return if self.0.len() > MAX_BLOCK { Framed::Invalid } else { Framed::Incomplete };
        };
        *scanned = 0;
        let mut rest = Self::default();
        rest.extend(&self.0[end..]);
        let mut block = std::mem::replace(self, rest).0;
        block[end..].zeroize();
        block.truncate(end);
        // The same memory as text: an answer of a large device has megabytes, and zeroising is slow.
        match String::from_utf8(std::mem::take(&mut *block)) {
            Ok(text) => Framed::Block(Zeroizing::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Framed::Invalid
            }
        }
    }
}
