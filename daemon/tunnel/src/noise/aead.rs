//! ChaCha20-Poly1305 of the data, by whichever engine is the fastest here: Intel's library where it is installed and the
//! processor has AVX-512, else `ring`. Handshakes stay with `ring`.
//!
//! The engine is chosen once for the process. Intel's has to agree with `ring` first, about texts of many lengths and about
//! forgeries; if it does not, that is warned of, and `ring` it is.

use std::fmt;
use std::sync::OnceLock;

use ring::aead::{Aad, LessSafeKey, Tag};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

pub use super::Error;
use super::message::TAG;
use super::primitives::{aead_key, nonce, nonce_bytes};
use crate::sys::ipsec_mb::IpsecMb;
pub use crate::sys::ipsec_mb::Unusable;

/// The blocks that RFC 8439 counts in 32 bits, less the one that makes the Poly1305 key. `ring` has the same limit.
const MAX_TEXT: u64 = 64 * (u32::MAX as u64 - 1);

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The fastest that can be had
    Auto,
    /// The one that is always there
    Ring,
    /// Intel's Multi-Buffer Crypto library, or nothing
    IpsecMb,
}

/// What computes.
#[derive(Clone, Copy)]
pub enum Engine {
    /// The crate `ring`.
    Ring,
    /// Intel's Multi-Buffer Crypto library, opened and checked.
    IpsecMb(IpsecMb),
}

static ENGINE: OnceLock<Engine> = OnceLock::new();

/// Chooses the engine of this process, and says which it is. To be called before anything is sealed, and once.
///
/// # Errors
/// When the one that is wanted cannot be used.
///
/// # Panics
/// If there is an engine already.
pub fn select(choice: Choice) -> Result<Engine, Unusable> {
    let engine = Engine::new(choice)?;
    assert!(ENGINE.set(engine).is_ok(), "packets are sealed by another engine already");
    tracing::info!(%engine, "chose what seals packets");
    Ok(engine)
}

/// The engine of this process; if none was [selected](select), the fastest that can be had.
pub fn engine() -> Engine {
    *ENGINE.get_or_init(Engine::fastest)
}

impl Engine {
    /// The engine that is wanted.
    ///
    /// # Errors
    /// When it cannot be used; never for [`Choice::Auto`] and [`Choice::Ring`].
    pub fn new(choice: Choice) -> Result<Self, Unusable> {
        match choice {
            Choice::Auto => Ok(Self::fastest()),
            Choice::Ring => Ok(Self::Ring),
            Choice::IpsecMb => {
                let engine = Self::IpsecMb(IpsecMb::get()?);
                engine.agrees_with_ring()?;
                Ok(engine)
            }
        }
    }

    fn fastest() -> Self {
        Self::new(Choice::IpsecMb).unwrap_or_else(|error| {
            match error {
                Unusable::Wrong(_) => tracing::warn!(%error, "ring seals packets instead"),
                _ => tracing::debug!(%error, "ring seals packets"),
            }
            Self::Ring
        })
    }

    /// As `--aead` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::IpsecMb(_) => "ipsec-mb",
        }
    }

    /// Both ways, and no forgery is taken. The lengths are those around blocks of 16 and 64 bytes and the 1,024 that AVX-512
    /// computes at once, those of packets, and the longest datagram's.
    fn agrees_with_ring(self) -> Result<(), Unusable> {
        const LENGTHS: [usize; 22] = [
            0, 1, 15, 16, 17, 63, 64, 65, 80, 255, 256, 959, 960, 961, 1023, 1024, 1025, 1424, 1500, 2048,
            9001, 65_503,
        ];
        let mut bytes = [0_u8; 32];
        for (counter, len) in (u64::from(u32::MAX) - 3..).zip(LENGTHS) {
            bytes.iter_mut().zip(1_u8..).for_each(|(byte, number)| *byte = byte.wrapping_mul(7) ^ number);
            let (ours, ring) = (Key::with(self, &bytes), Key::with(Self::Ring, &bytes));
            let plain: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8).collect();
            let agree = || -> Result<bool, Error> {
                let (mut sealed, mut expected) = (plain.clone(), plain.clone());
                let tag = ours.seal(counter, &mut sealed)?;
                let same = tag == ring.seal(counter, &mut expected)? && sealed == expected;
                let opens = |text: &[u8], tag| {
                    let mut text = text.to_vec();
                    ours.open(counter, &mut text, tag).is_ok() && text == plain
                };
                let mut forged = tag;
                forged[counter as usize % TAG] ^= 0x10;
                let refuses_tag = !opens(&sealed, &forged);
                let intact = opens(&sealed, &tag);
                let changed = sealed.last_mut().map(|byte| *byte ^= 1);
                Ok(same && intact && refuses_tag && !(changed.is_some() && opens(&sealed, &tag)))
            };
            if agree() != Ok(true) {
                return Err(Unusable::Wrong(format!("{len} bytes")));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

/// A key for one direction of a session.
pub struct Key(Kept);

#[expect(clippy::large_enum_variant, reason = "each packet would pay for a pointer to the key")]
enum Kept {
    /// Of which `ring` does not overwrite its copy.
    Ring(LessSafeKey),
    IpsecMb(IpsecMb, Zeroizing<[u8; 32]>),
}

impl Key {
    /// A key for the process's [`engine`].
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self::with(engine(), bytes)
    }

    /// A key for this engine.
    pub fn with(engine: Engine, bytes: &[u8; 32]) -> Self {
        Self(match engine {
            Engine::Ring => Kept::Ring(aead_key(bytes)),
            Engine::IpsecMb(library) => Kept::IpsecMb(library, Zeroizing::new(*bytes)),
        })
    }

    /// Encrypts in place; the tag. A counter is for one text.
    ///
    /// # Errors
    /// [`Error::NoRoom`] if the text is longer than 256 GiB.
    pub fn seal(&self, counter: u64, text: &mut [u8]) -> Result<[u8; TAG], Error> {
        if text.len() as u64 > MAX_TEXT {
            return Err(Error::NoRoom);
        }
        match &self.0 {
            Kept::Ring(key) => {
                let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text);
                tag.map_err(|_| Error::NoRoom)?.as_ref().try_into().map_err(|_| Error::NoRoom)
            }
            Kept::IpsecMb(library, key) => Ok(library.seal(key, &nonce_bytes(counter), text)),
        }
    }

    /// Decrypts in place what has this tag.
    ///
    /// # Errors
    /// [`Error::Data`] if it has not. Then the text is zeros: both engines have decrypted it by the time they know, and nobody
    /// shall read that by mistake.
    pub fn open(&self, counter: u64, text: &mut [u8], tag: &[u8; TAG]) -> Result<(), Error> {
        if text.len() as u64 > MAX_TEXT {
            return Err(Error::Data);
        }
        let authentic = match &self.0 {
            Kept::Ring(key) => key
                .open_in_place_separate_tag(nonce(counter), Aad::empty(), Tag::from(*tag), text, 0..)
                .is_ok(),
            Kept::IpsecMb(library, key) => library.open(key, &nonce_bytes(counter), text).ct_eq(tag).into(),
        };
        if !authentic {
            text.fill(0);
            return Err(Error::Data);
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self.0 {
            Kept::Ring(_) => "Key(ring)",
            Kept::IpsecMb(..) => "Key(ipsec-mb)",
        })
    }
}
