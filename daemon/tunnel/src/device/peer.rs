//! A peer: what is configured of it, and one session per lane.
//!
//! A lane is a tunnel of its own: between the two ports that are as many behind the first ones as its number, with a
//! session and handshakes of its own. So several lanes are, to the peer, what several interfaces with one key would be.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::session::Session;

/// A Curve25519 public key: a peer's name.
pub type PublicKey = [u8; 32];

/// One peer of a device. It is shared by the tables that lead to it; what changes is behind locks.
pub struct Peer {
    pub(super) public_key: PublicKey,
    /// Seconds between persistent keepalives; 0 is off.
    keepalive: AtomicU16,
    /// How many of `sessions` are used to send. The others receive what is under way to them.
    lanes: AtomicU16,
    /// One per lane of the device.
    sessions: Box<[Mutex<Session>]>,
}

impl Peer {
    /// A peer with one lane, and sessions for as many as the device has, 1 at least.
    pub(super) fn new(public_key: PublicKey, sessions: impl Iterator<Item = Session>) -> Self {
        let sessions = sessions.map(Mutex::new).collect();
        Self { public_key, keepalive: AtomicU16::new(0), lanes: AtomicU16::new(1), sessions }
    }

    /// The session that carries what lane `lane` sends to this peer, with the number of its own lane. Each
    /// lock is held for one packet or super-packet, so two lanes that meet here wait microseconds.
    pub(super) fn session_for(&self, lane: usize) -> (usize, MutexGuard<'_, Session>) {
        let lane = lane % usize::from(self.lanes());
        let session = lock(&self.sessions[lane]);
        if self.sessions.len() == 1 || session.endpoint().is_some() {
            return (lane, session);
        }
        // Never two locks at once.
        drop(session);
        let guess = self.guess_endpoint(lane);
        let mut session = lock(&self.sessions[lane]);
        if let (None, Some(endpoint)) = (session.endpoint(), guess) {
            session.set_endpoint(endpoint);
        }
        (lane, session)
    }

    /// The endpoint of a lane that was not heard of yet: beside that of one that was.
    fn guess_endpoint(&self, lane: usize) -> Option<SocketAddr> {
        let (other, mut endpoint) =
            self.sessions().find_map(|(other, session)| Some((other, session.endpoint()?)))?;
        endpoint.set_port(endpoint.port().checked_sub(u16::try_from(other).ok()?)?);
        of_lane(endpoint, lane)
    }

    /// How many lanes there are to this peer.
    pub(super) fn lanes(&self) -> u16 {
        self.lanes.load(Ordering::Relaxed)
    }

    /// Sets the number of lanes, 1 to as many as the device has.
    pub(super) fn set_lanes(&self, lanes: u16) {
        let before = self.lanes.swap(lanes, Ordering::Relaxed);
        if lanes > before && self.keepalive() != 0 {
            self.want_keepalives();
        }
    }

    /// Sets the first lane's endpoint, and with it those of the others.
    pub(super) fn set_endpoint(&self, endpoint: SocketAddr) {
        for (lane, mut session) in self.sessions() {
            if let Some(endpoint) = of_lane(endpoint, lane) {
                session.set_endpoint(endpoint);
            }
        }
    }

    /// The session of one lane, if the peer has it.
    pub(super) fn session(&self, lane: usize) -> Option<MutexGuard<'_, Session>> {
        self.sessions.get(lane).map(lock)
    }

    /// All sessions, with the numbers of their lanes.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (usize, MutexGuard<'_, Session>)> {
        self.sessions.iter().map(lock).enumerate()
    }

    /// Seconds between persistent keepalives; 0 is off.
    pub(super) fn keepalive(&self) -> u16 {
        self.keepalive.load(Ordering::Relaxed)
    }

    /// The same as a time, if they are on.
    pub(super) fn keepalive_interval(&self) -> Option<Duration> {
        Some(self.keepalive())
            .filter(|seconds| *seconds != 0)
            .map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Sets the interval. Turning keepalives on asks for one at once (kernel `netlink.c`, `set_peer`).
    pub(super) fn set_keepalive(&self, seconds: u16) {
        let before = self.keepalive.swap(seconds, Ordering::Relaxed);
        if before == 0 && seconds != 0 {
            self.want_keepalives();
        }
    }

    fn want_keepalives(&self) {
        self.sessions().for_each(|(_, mut session)| session.want_keepalive());
    }
}

/// The endpoint of a lane, if `first` is that of the first one. `None`: there is no such port.
pub fn of_lane(first: SocketAddr, lane: usize) -> Option<SocketAddr> {
    let mut endpoint = first;
    endpoint.set_port(first.port().checked_add(u16::try_from(lane).ok()?)?);
    Some(endpoint)
}

/// A panic while a lock is held ends the program (see the crate's profile); until then nothing behind the
/// lock is worse than after any other packet.
fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
