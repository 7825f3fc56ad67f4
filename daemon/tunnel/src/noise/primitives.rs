//! What `snow` computes a handshake with: X25519 by `x25519-dalek`, ChaCha20-Poly1305 by `ring`, BLAKE2s by `blake2`.
//!
//! `snow` has such adapters, too. These overwrite their secrets when they are dropped, do not compute again what is known of
//! the static keys, and refuse keys with which every shared secret is zero, as the kernel does (`curve25519.c`).

use blake2::{Blake2s256, Digest};
use rand_core::{OsRng, RngCore};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use super::handshake::{LocalKey, PeerKey};
use super::message::TAG;

/// A nonce's first four bytes are zero.
pub(super) fn nonce_bytes(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// A nonce for `ring`.
pub(super) fn nonce(counter: u64) -> Nonce {
    Nonce::assume_unique_for_key(nonce_bytes(counter))
}

/// A key for `ring`, which keeps a copy that it does not overwrite.
pub(super) fn aead_key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("a key of this algorithm has 32 bytes"),
    )
}

/// The primitives for one handshake.
pub(super) struct Primitives(Curve);

impl Primitives {
    /// For a handshake of ours, with a known peer or with whoever it may be.
    pub(super) fn new(local: &LocalKey, peer: Option<&PeerKey>) -> Self {
        Self(Curve {
            secret: local.secret().clone(),
            public: *local.public(),
            known: peer.map(|peer| (*peer.public(), Zeroizing::new(*peer.shared().as_bytes()))),
        })
    }
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(System))
    }

    /// `snow` asks twice: for the static key, and for the ephemeral one, which it generates in place of what is there.
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(self.0.clone()) as _)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::<Blake2s>::default() as _)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::<ChaChaPoly>::default() as _)
    }
}

struct System;

impl Random for System {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        OsRng.try_fill_bytes(bytes).map_err(|_| Error::Rng)
    }
}

#[derive(Clone)]
struct Curve {
    secret: StaticSecret,
    public: PublicKey,
    /// The shared secret with one public key.
    known: Option<(PublicKey, Zeroizing<[u8; 32]>)>,
}

impl From<StaticSecret> for Curve {
    fn from(secret: StaticSecret) -> Self {
        Self { public: PublicKey::from(&secret), secret, known: None }
    }
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    /// The static key, which is here already, with its public half.
    fn set(&mut self, _: &[u8]) {}

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        random.try_fill_bytes(&mut *bytes)?;
        *self = StaticSecret::from(*bytes).into();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public: [u8; 32] = public.get(..32).and_then(|key| key.try_into().ok()).ok_or(Error::Dh)?;
        let out = out.get_mut(..32).ok_or(Error::Dh)?;
        match &self.known {
            Some((peer, shared)) if *peer.as_bytes() == public => out.copy_from_slice(&**shared),
            _ => out.copy_from_slice(agree(&self.secret, &public.into()).ok_or(Error::Dh)?.as_bytes()),
        }
        Ok(())
    }
}

/// A shared secret, unless it would be zero.
pub(super) fn agree(secret: &StaticSecret, public: &PublicKey) -> Option<SharedSecret> {
    Some(secret.diffie_hellman(public)).filter(SharedSecret::was_contributory)
}

#[derive(Default)]
struct ChaChaPoly(Zeroizing<[u8; 32]>);

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        *self.0 = *key;
    }

    fn encrypt(&self, counter: u64, authenticated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (text, tag) = out[..plain.len() + TAG].split_at_mut(plain.len());
        text.copy_from_slice(plain);
        let sealed =
            aead_key(&self.0).seal_in_place_separate_tag(nonce(counter), Aad::from(authenticated), text);
        tag.copy_from_slice(sealed.expect("a handshake's fields are short").as_ref());
        plain.len() + TAG
    }

    fn decrypt(
        &self,
        counter: u64,
        authenticated: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (text, tag) = sealed.split_last_chunk::<TAG>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(text);
        aead_key(&self.0)
            .open_in_place_separate_tag(nonce(counter), Aad::from(authenticated), (*tag).into(), out, 0..)
            .map(|plain| plain.len())
            .map_err(|_| Error::Decrypt)
    }
}

#[derive(Default)]
struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&std::mem::take(&mut self.0).finalize());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_keys_are_refused() {
        let secret = StaticSecret::random_from_rng(OsRng);
        let curve = Curve::from(secret);
        let mut one = [0; 32];
        one[0] = 1;
        for weak in [[0; 32], one] {
            assert_eq!(curve.dh(&weak, &mut [0; 56]), Err(Error::Dh));
        }
        assert_eq!(curve.dh(curve.pubkey(), &mut [0; 56]), Ok(()));
    }

    #[test]
    fn a_known_secret_is_that_which_would_be_computed() {
        let (ours, theirs) = (StaticSecret::random_from_rng(OsRng), StaticSecret::random_from_rng(OsRng));
        let (local, peer) = (LocalKey::new(ours.clone()), PublicKey::from(&theirs));
        let known = Primitives::new(&local, Some(&PeerKey::new(&local, peer).unwrap())).0;
        let (mut a, mut b, mut c) = ([0; 56], [0; 56], [0; 56]);
        known.dh(peer.as_bytes(), &mut a).unwrap();
        Curve::from(ours).dh(peer.as_bytes(), &mut b).unwrap();
        assert_eq!(a, b);
        let other = PublicKey::from(&StaticSecret::random_from_rng(OsRng));
        known.dh(other.as_bytes(), &mut c).unwrap();
        assert_ne!(a, c);
    }

    #[test]
    fn a_generated_key_knows_nothing_of_the_static_one() {
        let local = LocalKey::new(StaticSecret::random_from_rng(OsRng));
        let peer = PublicKey::from(&StaticSecret::random_from_rng(OsRng));
        let mut curve = Primitives::new(&local, Some(&PeerKey::new(&local, peer).unwrap())).0;
        curve.generate(&mut System).unwrap();
        assert!(curve.known.is_none());
        assert_ne!(curve.pubkey(), local.public().as_bytes());
        let mut shared = [0; 56];
        curve.dh(peer.as_bytes(), &mut shared).unwrap();
        assert_eq!(shared[..32], curve.secret.diffie_hellman(&peer).to_bytes());
    }
}
