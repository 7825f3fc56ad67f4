//! WireGuard public keys.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A Curve25519 public key, 32 bytes, written in base64 as `wg` does.
///
/// The all-zero key, which WireGuard uses for "no key", cannot be held: it is the one value that must never
/// be taken for a peer. Other low-order points end in a failed handshake, as the protocol wants it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// Why some text or bytes are no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not base64 of 32 bytes.
    #[error("a public key is 32 bytes in base64 (44 characters), not {0:?}")]
    Malformed(String),
    /// All bytes are zero.
    #[error("the public key is all zero, which WireGuard reads as no key")]
    Zero,
}

impl PublicKey {
    /// The key of these bytes, unless they are all zero.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if bytes == [0; 32] { Err(KeyError::Zero) } else { Ok(Self(bytes)) }
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten characters of the base64 form: enough to recognise a key in a table, and a prefix
    /// that `grep` finds in the output of `wg show`.
    pub fn fingerprint(&self) -> String {
        self.to_string()[..10].to_owned()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed(text.chars().take(64).collect());
        let bytes = STANDARD.decode(text.trim()).map_err(|_| malformed())?;
        Self::from_bytes(bytes.try_into().map_err(|_| malformed())?)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_key_survives_its_text(bytes in any::<[u8; 32]>().prop_filter("zero", |b| *b != [0; 32])) {
            let key = PublicKey::from_bytes(bytes).unwrap();
            prop_assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<PublicKey>();
        }
    }

    #[test]
    fn the_zero_key_is_no_key() {
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".parse::<PublicKey>(), Err(KeyError::Zero));
    }
}
