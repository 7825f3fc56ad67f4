//! What a device is configured to be, and how an update changes it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use rand_core::{OsRng, RngCore};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::admission::Gate;
use super::allowed_ips::AllowedIps;
use super::peer::{Peer, PublicKey, of_lane};
use super::session::{Budget, Session};
use crate::noise::handshake::LocalKey;
use crate::uapi::{DeviceState, DeviceUpdate, PeerState, PeerUpdate, SecretKey};

/// As many as the kernel takes (`messages.h`, MAX_PEERS_PER_DEVICE); far below the 2^24 indices.
const MAX_PEERS: usize = 1 << 20;

/// Why an update is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// With such a key (zero, for example) every shared secret is zero, so anybody could pose as its owner.
    #[error("a peer's public key is weak: nobody could be proved to own it")]
    WeakKey,
    /// The device is full.
    #[error("a device has {MAX_PEERS} peers at most")]
    TooManyPeers,
    /// A lane of the device carries one of the peer.
    #[error("a peer has more lanes than the device: start it with a larger --lanes")]
    TooManyLanes,
    /// Lanes have consecutive ports.
    #[error("a peer has more lanes than there are ports from its endpoint's on")]
    NoPortsForLanes,
}

impl ApplyError {
    /// The number of `errno.h` to answer with.
    pub fn errno(self) -> i32 {
        match self {
            Self::WeakKey | Self::TooManyLanes | Self::NoPortsForLanes => Errno::EINVAL as i32,
            Self::TooManyPeers => Errno::ENOMEM as i32,
        }
    }
}

/// The own key pair, and the gate that is keyed by it.
pub struct Identity {
    pub(super) local: LocalKey,
    pub(super) gate: Gate,
}

/// All tables of a device.
pub struct Table {
    pub(super) identity: Option<Identity>,
    pub(super) allowed: AllowedIps,
    peers: HashMap<PublicKey, Arc<Peer>>,
    /// Upper 24 bits of receiver indices, and whose lane they lead to.
    indices: HashMap<u32, (Arc<Peer>, usize), BuildHasherDefault<IndexHasher>>,
    handshakes_per_second: u64,
    lanes: u16,
    /// What packets that wait for keys may take, of all peers together.
    pub(super) waiting: Arc<Budget>,
}

impl Table {
    pub(super) fn new(handshakes_per_second: u64, lanes: u16) -> Self {
        Self {
            lanes,
            identity: None,
            allowed: AllowedIps::default(),
            peers: HashMap::new(),
            indices: HashMap::default(),
            handshakes_per_second,
            waiting: Arc::default(),
        }
    }

    pub(super) fn peer(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.peers.get(key)
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.values()
    }

    /// Whose session a receiver index belongs to, and on which lane.
    pub(super) fn by_index(&self, index: u32) -> Option<(&Arc<Peer>, usize)> {
        self.indices.get(&(index >> 8)).map(|(peer, lane)| (peer, *lane))
    }

    /// Says whether `update` can be applied; then it can as a whole.
    pub(super) fn check(&self, update: &DeviceUpdate) -> Result<(), ApplyError> {
        let created = update
            .peers
            .iter()
            .filter(|peer| !peer.remove && !peer.update_only && !self.peers.contains_key(&peer.public_key));
        let mut count = self.peers.len();
        for peer in created {
            count += 1;
            if is_weak(peer.public_key) {
                return Err(ApplyError::WeakKey);
            }
        }
        if count > MAX_PEERS {
            return Err(ApplyError::TooManyPeers);
        }
        update.peers.iter().filter(|peer| !peer.remove).try_for_each(|peer| self.check_lanes(peer))
    }

    fn check_lanes(&self, update: &PeerUpdate) -> Result<(), ApplyError> {
        let now = self.peers.get(&update.public_key);
        let lanes = update.lanes.or(now.map(|peer| peer.lanes())).unwrap_or(1);
        if lanes > self.lanes {
            return Err(ApplyError::TooManyLanes);
        }
        let endpoint = update.endpoint.or_else(|| now?.session(0)?.endpoint());
        match endpoint.map(|endpoint| of_lane(endpoint, usize::from(lanes) - 1)) {
            Some(None) => Err(ApplyError::NoPortsForLanes),
            _ => Ok(()),
        }
    }

    pub(super) fn apply(&mut self, update: &DeviceUpdate, now: Instant) {
        if let Some(key) = &update.private_key {
            self.set_private_key(key, now);
        }
        if update.replace_peers {
            self.peers.clear();
            self.indices.clear();
            self.allowed = AllowedIps::default();
        }
        for peer in &update.peers {
            self.apply_peer(peer);
        }
    }

    fn apply_peer(&mut self, update: &PeerUpdate) {
        let own =
            self.identity.as_ref().is_some_and(|own| own.local.public().as_bytes() == &update.public_key);
        if update.remove {
            return self.remove_peer(&update.public_key);
        }
        // The own key as a peer is ignored, as in the kernel: whole configurations are handed to all nodes.
        if own || (update.update_only && !self.peers.contains_key(&update.public_key)) {
            return;
        }
        let peer = self.find_or_create(update.public_key);
        if let Some(psk) = &update.preshared_key {
            peer.sessions().for_each(|(_, mut session)| session.set_psk(psk));
        }
        if let Some(endpoint) = update.endpoint {
            peer.set_endpoint(canonical(endpoint));
        }
        if let Some(lanes) = update.lanes {
            peer.set_lanes(lanes);
        }
        if let Some(seconds) = update.persistent_keepalive {
            peer.set_keepalive(seconds);
        }
        if update.replace_allowed_ips {
            self.allowed.remove_all(&update.public_key);
        }
        for change in &update.allowed_ips {
            if change.remove {
                self.allowed.remove(change.net, &update.public_key);
            } else {
                self.allowed.insert(change.net, &peer);
            }
        }
    }

    fn find_or_create(&mut self, key: PublicKey) -> Arc<Peer> {
        if let Some(peer) = self.peers.get(&key) {
            return peer.clone();
        }
        let indices = self.fresh_indices();
        let session = |index| Session::new(key.into(), index, random() as u8, self.waiting.clone());
        let peer = Arc::new(Peer::new(key, indices.iter().copied().map(session)));
        let lanes = indices.into_iter().enumerate();
        self.indices.extend(lanes.map(|(lane, index)| (index, (peer.clone(), lane))));
        self.peers.insert(key, peer.clone());
        peer
    }

    fn remove_peer(&mut self, key: &PublicKey) {
        let Some(peer) = self.peers.remove(key) else { return };
        for (_, session) in peer.sessions() {
            self.indices.remove(&session.index());
        }
        self.allowed.remove_all(key);
    }

    /// Setting the key that is already set changes nothing: `wg syncconf` does so each time.
    fn set_private_key(&mut self, key: &SecretKey, now: Instant) {
        let identity = (**key != [0; 32]).then(|| {
            let local = LocalKey::new(StaticSecret::from(*clamp(key)));
            let gate = Gate::new(local.public(), self.handshakes_per_second, now);
            Identity { local, gate }
        });
        let public = |identity: &Option<Identity>| identity.as_ref().map(|identity| *identity.local.public());
        if public(&identity) == public(&self.identity) {
            return;
        }
        if let Some(identity) = &identity {
            self.remove_peer(identity.local.public().as_bytes());
        }
        self.identity = identity;
        for peer in self.peers.values() {
            peer.sessions().for_each(|(_, mut session)| session.new_identity());
        }
    }

    /// Random indices that nobody has, for the lanes of a new peer: an attacker who does not see our traffic cannot guess
    /// where a message for us would have to go.
    fn fresh_indices(&self) -> Vec<u32> {
        let mut fresh = Vec::with_capacity(self.lanes.into());
        while fresh.len() < self.lanes.into() {
            let index = random() >> 8;
            if !self.indices.contains_key(&index) && !fresh.contains(&index) {
                fresh.push(index);
            }
        }
        fresh
    }

    #[cfg(test)]
    pub(super) fn indices(&self) -> usize {
        self.indices.len()
    }

    /// Everything `get=1` tells, except what only the sockets know.
    pub(super) fn state(&self) -> DeviceState {
        let mut peers: Vec<PeerState> = self.peers.values().map(|peer| self.peer_state(peer)).collect();
        peers.sort_unstable_by_key(|peer| peer.public_key);
        DeviceState {
            private_key: self.identity.as_ref().map(|own| Zeroizing::new(own.local.secret().to_bytes())),
            peers,
            ..DeviceState::default()
        }
    }

    fn peer_state(&self, peer: &Peer) -> PeerState {
        let mut state = PeerState::new(peer.public_key);
        state.persistent_keepalive = peer.keepalive();
        state.lanes = peer.lanes();
        state.allowed_ips = self.allowed.of(&peer.public_key).collect();
        peer.sessions().for_each(|(_, session)| session.report(&mut state));
        state
    }
}

fn random() -> u32 {
    OsRng.next_u32()
}

/// Indices are random and nobody else's choice, so they are spread as they are.
#[derive(Default)]
struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, index: u32) {
        // The table looks at the upper bits, too. The multiplier is 2^64 divided by the golden ratio (Knuth, 6.4).
        self.0 = (self.0 ^ u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The same address however it was written: IPv4 addresses mapped into IPv6 become IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// Curve25519 ignores these bits; the kernel and wg(8) show keys without them.
fn clamp(key: &SecretKey) -> SecretKey {
    let mut key = key.clone();
    key[0] &= 248;
    key[31] = (key[31] & 127) | 64;
    key
}

/// A point of small order turns every Diffie-Hellman into zero, whatever the other key; so one trial with
/// any key tells.
fn is_weak(key: PublicKey) -> bool {
    let any = StaticSecret::from([1; 32]);
    !any.diffie_hellman(&key.into()).was_contributory()
}
