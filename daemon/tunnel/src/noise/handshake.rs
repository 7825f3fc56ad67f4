//! The two roles of a handshake, Noise_IKpsk2 (whitepaper sections 5.4.2 to 5.4.5), by `snow`.
//!
//! ```text
//!   initiation ─▶  e, es, s, ss, {timestamp}    the responder now knows who it is, and that it is them
//!   response   ◀─  e, ee, se, psk, {}           the PSK is asked for only here: read, look up, answer
//!   keys            one for each direction
//! ```
//!
//! An initiator that reads a response which is none is as it was before: whoever guesses an index spoils nothing.

use std::fmt;
use std::sync::LazyLock;

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use super::Error;
use super::message::{Handshake as _, INITIATION, Initiation, RESPONSE, Response};
use super::primitives::{Primitives, agree};
use super::timestamp::Timestamp;

static PARAMETERS: LazyLock<NoiseParams> = LazyLock::new(|| {
    "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().expect("snow knows WireGuard's handshake")
});

const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// The place of the PSK in the handshake's name.
const PSK: u8 = 2;

/// A preshared key; all zeros is none.
pub type PresharedKey = [u8; 32];

/// Our own key pair.
pub struct LocalKey {
    secret: StaticSecret,
    public: PublicKey,
}

impl LocalKey {
    /// The pair of a private key.
    pub fn new(secret: StaticSecret) -> Self {
        Self { public: PublicKey::from(&secret), secret }
    }

    /// What peers know us by.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What only we know.
    pub fn secret(&self) -> &StaticSecret {
        &self.secret
    }
}

/// A peer's key, and what all our handshakes with it share: a Diffie-Hellman that is computed once.
pub struct PeerKey {
    public: PublicKey,
    shared: SharedSecret,
}

impl PeerKey {
    /// Costs a Diffie-Hellman. `None` for a weak key, with which every shared secret is zero.
    pub fn new(local: &LocalKey, public: PublicKey) -> Option<Self> {
        Some(Self { public, shared: agree(&local.secret, &public)? })
    }

    /// What we know the peer by.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn shared(&self) -> &SharedSecret {
        &self.shared
    }
}

/// What two peers have agreed on.
pub struct Keys {
    /// The peer sends under this index.
    pub(super) local_index: u32,
    /// We do under this one.
    pub(super) peer_index: u32,
    pub(super) sending: Zeroizing<[u8; 32]>,
    pub(super) receiving: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { local_index, peer_index, .. } = self;
        to.debug_struct("Keys")
            .field("local_index", local_index)
            .field("peer_index", peer_index)
            .finish_non_exhaustive()
    }
}

/// Whoever wants keys, and waits for a response.
pub struct Initiator {
    state: Box<HandshakeState>,
    index: u32,
}

impl Initiator {
    /// Begins a handshake; gives the initiation, to which [`mac`](super::mac) has to add its own. `index` is where the
    /// response is to come, and then data. Costs two multiplications on the curve.
    ///
    /// # Errors
    /// [`Error::Handshake`]: without randomness there are no keys.
    pub fn new(
        local: &LocalKey,
        peer: &PeerKey,
        psk: &PresharedKey,
        index: u32,
        timestamp: Timestamp,
    ) -> Result<(Self, [u8; INITIATION]), Error> {
        let builder = builder(local, Some(peer))
            .and_then(|builder| builder.remote_public_key(peer.public.as_bytes()))
            .and_then(|builder| builder.psk(PSK, psk));
        let mut state = Box::new(builder.and_then(Builder::build_initiator)?);
        let initiation = Initiation::write(index, |noise| written(&mut state, &timestamp.0, noise))?;
        Ok((Self { state, index }, initiation))
    }

    /// The index that it began with.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Ends the handshake by the peer's response, whose MACs were checked. It then has served; after an error it goes on.
    /// Costs two multiplications on the curve.
    ///
    /// # Errors
    /// [`Error::Index`], or [`Error::Handshake`]: it is not our peer's response to this initiation.
    pub fn finish(&mut self, response: &Response<'_>) -> Result<Keys, Error> {
        if response.receiver() != self.index {
            return Err(Error::Index);
        }
        self.state.read_message(response.noise(), &mut [])?;
        let (sending, receiving) = split(&mut self.state)?;
        Ok(Keys { local_index: self.index, peer_index: response.sender(), sending, receiving })
    }
}

/// Whoever is asked for keys, and knows by whom.
pub struct Responder {
    state: Box<HandshakeState>,
    peer: PublicKey,
    peer_index: u32,
    timestamp: Timestamp,
}

impl Responder {
    /// Reads an initiation, whose MACs were checked. It is authentic then, but may be a replay: see
    /// [`timestamp`](Self::timestamp). Costs two multiplications on the curve.
    ///
    /// # Errors
    /// [`Error::Handshake`]: it is not for us, or not from whom it says.
    pub fn read(local: &LocalKey, initiation: &Initiation<'_>) -> Result<Self, Error> {
        let mut state = Box::new(builder(local, None).and_then(Builder::build_responder)?);
        let mut timestamp = [0; 12];
        state.read_message(initiation.noise(), &mut timestamp)?;
        let peer: Option<[u8; 32]> = state.get_remote_static().and_then(|key| key.try_into().ok());
        Ok(Self {
            state,
            peer: peer.ok_or(Error::Handshake)?.into(),
            peer_index: initiation.sender(),
            timestamp: Timestamp(timestamp),
        })
    }

    /// Who wants keys.
    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// When they wanted them. Initiations of one peer that are not later than the last are not to be answered.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// Gives the response, to which [`mac`](super::mac) has to add its own, and keys. Nobody has proved to have
    /// these before the first data under them. `index` is where data is to come. Costs three multiplications on the curve.
    ///
    /// # Errors
    /// [`Error::Handshake`]: the peer's ephemeral key is weak, or there is no randomness.
    pub fn answer(mut self, psk: &PresharedKey, index: u32) -> Result<([u8; RESPONSE], Keys), Error> {
        self.state.set_psk(PSK.into(), psk)?;
        let response = Response::write(index, self.peer_index, |noise| written(&mut self.state, &[], noise))?;
        let (receiving, sending) = split(&mut self.state)?;
        Ok((response, Keys { local_index: index, peer_index: self.peer_index, sending, receiving }))
    }
}

fn builder<'a>(local: &'a LocalKey, peer: Option<&PeerKey>) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(PARAMETERS.clone(), Box::new(Primitives::new(local, peer)))
        .prologue(PROLOGUE)?
        .local_private_key(local.secret.as_bytes())
}

/// Writes a Noise message that fills `to`.
fn written(state: &mut HandshakeState, payload: &[u8], to: &mut [u8]) -> Result<(), Error> {
    let len = state.write_message(payload, to)?;
    debug_assert_eq!(len, to.len(), "the layout of WireGuard's messages is that of IKpsk2");
    Ok(())
}

type Key = Zeroizing<[u8; 32]>;

/// The keys of a handshake that has ended: that from initiator to responder first. Overwrites the PSK in `state`.
fn split(state: &mut HandshakeState) -> Result<(Key, Key), Error> {
    state.set_psk(PSK.into(), &[0; 32])?;
    if !state.is_handshake_finished() {
        return Err(Error::Handshake);
    }
    let (mut there, mut back) = state.dangerously_get_raw_split();
    let keys = (Zeroizing::new(there), Zeroizing::new(back));
    there.zeroize();
    back.zeroize();
    Ok(keys)
}

/// What exactly is wrong with a handshake is nobody's business.
impl From<snow::Error> for Error {
    fn from(_: snow::Error) -> Self {
        Self::Handshake
    }
}
