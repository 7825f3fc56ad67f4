//! WireGuard public keys.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A Curve25519 public key, 32 bytes, written in base64 as `wg` does.
///
/// Keys that prove nothing cannot be held: the all-zero one, which WireGuard reads as no key, and every other
/// point of small order, with which any two parties agree on the same secret. WireGuard programs refuse such
/// a peer, and with it whatever else they were to be told in the same breath.
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
    /// A point of small order, or not the canonical form of a point.
    #[error("the public key {0} is weak: anybody could pose as its owner")]
    Weak(String),
}

/// The points of small order on Curve25519 and its twist, besides zero (<https://cr.yp.to/ecdh.html>, "How do
/// I validate Curve25519 public keys?"): 1, two points of order 8, p - 1, p and p + 1, in little-endian order.
const SMALL_ORDER: [[u8; 32]; 6] = [
    first_byte(1, [0; 32]),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    first_byte(0xec, P_TAIL),
    first_byte(0xed, P_TAIL),
    first_byte(0xee, P_TAIL),
];

/// The field's prime, 2^255 - 19, but for its lowest byte.
const P_TAIL: [u8; 32] = {
    let mut bytes = [0xff; 32];
    bytes[31] = 0x7f;
    bytes
};

const fn first_byte(first: u8, mut bytes: [u8; 32]) -> [u8; 32] {
    bytes[0] = first;
    bytes
}

impl PublicKey {
    /// The key of these bytes, if it can prove anything. The highest bit, which Curve25519 ignores, must be
    /// clear, so that a point has one key.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if bytes == [0; 32] {
            Err(KeyError::Zero)
        } else if SMALL_ORDER.contains(&bytes) || bytes[31] & 0x80 != 0 {
            Err(KeyError::Weak(STANDARD.encode(bytes)))
        } else {
            Ok(Self(bytes))
        }
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
        fn every_key_survives_its_text(secret in any::<[u8; 32]>()) {
            let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret));
            let key = PublicKey::from_bytes(public.to_bytes()).unwrap();
            prop_assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<PublicKey>();
        }
    }

    #[test]
    fn weak_keys_are_refused_and_weak_they_are() {
        for bytes in SMALL_ORDER {
            assert!(matches!(PublicKey::from_bytes(bytes), Err(KeyError::Weak(_))));
            let secret = x25519_dalek::StaticSecret::from([7; 32]);
            assert!(!secret.diffie_hellman(&bytes.into()).was_contributory(), "{bytes:02x?} is no weak key");
        }
        assert!(matches!(PublicKey::from_bytes([0xff; 32]), Err(KeyError::Weak(_))), "not canonical");
    }

    #[test]
    fn the_zero_key_is_no_key() {
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".parse::<PublicKey>(), Err(KeyError::Zero));
    }
}
