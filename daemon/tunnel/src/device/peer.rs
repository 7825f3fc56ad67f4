//! A peer: what is configured of it, and one session per lane.

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
    /// One session per lane that both sides have. Nobody tells us of more than one yet, so packets of
    /// every TUN queue share the first.
    sessions: Box<[Mutex<Session>]>,
}

impl Peer {
    pub(super) fn new(public_key: PublicKey, session: Session) -> Self {
        Self { public_key, keepalive: AtomicU16::new(0), sessions: Box::new([Mutex::new(session)]) }
    }

    /// The session that carries what lane `lane` sends to this peer, with the number of its own lane. Each
    /// lock is held for one packet, so two lanes that meet here wait microseconds.
    pub(super) fn session_for(&self, lane: usize) -> (usize, MutexGuard<'_, Session>) {
        let lane = lane % self.sessions.len();
        (lane, lock(&self.sessions[lane]))
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
            self.sessions().for_each(|(_, mut session)| session.want_keepalive());
        }
    }
}

/// A panic while a lock is held ends the program (see the crate's profile); until then nothing behind the
/// lock is worse than after any other packet.
fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
