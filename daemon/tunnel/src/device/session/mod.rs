//! One peer's cryptographic session on one lane: handshakes, keys, packets, and what time makes of them.
//!
//! ```text
//!   packets ──▶ send ──▶ keys? ──▶ sealed ──▶ datagrams            keys       which there are, and for how long
//!                         │ none: queue, initiate ──▶              handshake  how they come about
//!   datagrams ─▶ receive_data ──▶ opened ──▶ packets               timers     when what is due
//!     ─▶ receive_initiation, _response, _cookie ──▶                queue      what waits for keys
//!   clock ────▶ tick ──▶ initiations, keepalives                   configured what changes from outside
//! ```
//!
//! Whatever is in flight under old keys still arrives, and a peer whose other end does not know the new
//! PSK yet is not cut off. A new private key, as in the kernel, ends sending under old keys at once.
//!
//! All of this session's receiver indices share their upper 24 bits, by which they are found; the rest counts handshakes.

mod configured;
mod handshake;
mod keys;
mod queue;
mod timers;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use x25519_dalek::PublicKey;

use super::Context;
use super::allowed_ips;
use super::batch::{Datagrams, Packets, Path};
use super::drops::Drop;
use crate::noise::Error;
use crate::noise::message::{DATA_OVERHEAD, Data};
use crate::noise::timestamp::Timestamp;
use crate::uapi::SecretKey;

use handshake::{Initiators, Remote};
use keys::KeyRing;
pub use queue::Budget;
use queue::Queue;
#[cfg(test)]
pub use queue::WAITING_BYTES;
use timers::{Due, Timers};

/// See the module's text.
pub struct Session {
    peer: PublicKey,
    psk: SecretKey,
    /// The upper 24 bits of all indices.
    index: u32,
    /// The lower 8 bits of the last one.
    handshakes: u8,
    remote: Option<Box<Remote>>,
    initiators: Initiators,
    keys: KeyRing,
    timers: Timers,
    /// Packets that wait for keys, or for room in a batch.
    queue: Queue,
    path: Option<Path>,
    rx_bytes: u64,
    tx_bytes: u64,
    last_handshake: Option<SystemTime>,
    /// When an initiation was answered last.
    last_initiation: Option<Instant>,
    /// The time in it. Earlier ones are replays.
    answered: Option<Timestamp>,
    /// The time in our own last one.
    stamped: Option<Timestamp>,
    keepalive_wanted: bool,
    /// The next packet is to bring new keys, although there are some.
    rekey: bool,
}

/// Bytes of a session, and of each keys in it.
#[cfg(test)]
pub const SIZES: (usize, usize) = (size_of::<Session>(), size_of::<crate::noise::transport::Transport>());

impl Session {
    /// `index`: the upper 24 bits of those that lead to this session. `random` may be any number.
    pub(super) fn new(peer: PublicKey, index: u32, random: u8, budget: Arc<Budget>) -> Self {
        Self {
            peer,
            psk: SecretKey::default(),
            index,
            handshakes: random,
            remote: None,
            initiators: Initiators::default(),
            keys: KeyRing::default(),
            timers: Timers::default(),
            queue: Queue::new(budget),
            path: None,
            rx_bytes: 0,
            tx_bytes: 0,
            last_handshake: None,
            last_initiation: None,
            answered: None,
            stamped: None,
            keepalive_wanted: false,
            rekey: false,
        }
    }

    /// Sends an IP packet, already padded. Without keys it is queued and a handshake starts. Needs room for one datagram;
    /// uses it for two if there is.
    pub(super) fn send(&mut self, context: &Context<'_>, packet: &[u8], out: &mut Datagrams) {
        let Some(identity) = context.identity else { return context.drops.count(Drop::NoPrivateKey) };
        let Some(to) = self.path else { return context.drops.count(Drop::NoEndpoint) };
        self.drain(context, out);
        let sent = self.queue.is_empty() && out.has_room() && self.seal(context, packet, to, out);
        if !sent && let Err(reason) = self.queue.push(packet) {
            context.drops.count(reason);
        }
        if !self.timers.is_waiting() && (self.rekey || self.keys.current(context.now).is_none()) {
            self.initiate(context, identity, to, out);
        }
    }

    /// Sends a packet, or with no bytes a keepalive, if there are keys. There must be room for it.
    fn seal(&mut self, context: &Context<'_>, packet: &[u8], to: Path, out: &mut Datagrams) -> bool {
        let Some(keys) = self.keys.current(context.now) else { return false };
        let Ok(len) = keys.transport.seal_from(packet, out.room()) else { return false };
        self.timers.sent(!packet.is_empty(), context.now);
        self.tx_bytes += len as u64;
        out.commit(len, to.by(context.lane));
        true
    }

    /// Sends the packets that waited for keys. What does not fit waits for the next tick.
    fn drain(&mut self, context: &Context<'_>, out: &mut Datagrams) {
        let Some(to) = self.path else { return };
        while !self.queue.is_empty() && self.keys.current(context.now).is_some() {
            if !out.has_room() {
                return context.drops.count(Drop::Deferred);
            }
            let Some(packet) = self.queue.pop() else { return };
            self.seal(context, &packet, to, out);
        }
    }

    /// Decrypts a data message into the free room of `packets`. Returns length and inner source address of
    /// the packet; it is not committed, because the address is still to be checked.
    pub(super) fn receive_data(
        &mut self,
        context: &Context<'_>,
        data: &Data<'_>,
        path: Path,
        out: &mut Datagrams,
        packets: &mut Packets,
    ) -> Option<(usize, IpAddr)> {
        let Some((keys, unproved)) = self.keys.receiving(data.receiver(), context.now) else {
            context.drops.count(Drop::UnknownIndex);
            return None;
        };
        let packet = match keys.transport.open_into(data, packets.room()) {
            Ok(packet) => packet,
            Err(error) => {
                context.drops.count(reason(error));
                return None;
            }
        };
        let is_keepalive = packet.is_empty();
        let inner = allowed_ips::source(packet);
        self.authenticated(context, path, !is_keepalive);
        if unproved {
            self.confirm(context);
            self.drain(context, out);
        }
        if is_keepalive {
            self.account(DATA_OVERHEAD);
        } else if inner.is_none() {
            context.drops.count(Drop::BadPacket);
        }
        inner
    }

    /// Does what is due: retransmissions, rekeying, keepalives, expiry. Needs room for one datagram.
    pub(super) fn tick(&mut self, context: &Context<'_>, keepalive: Option<Duration>, out: &mut Datagrams) {
        self.keys.expire(context.now);
        let Some(identity) = context.identity else {
            // What waited for keys is stale before there is a private key again.
            return context.drops.count_all(Drop::NoPrivateKey, self.queue.clear());
        };
        let courteous = identity.local.public().as_bytes() > self.peer.as_bytes();
        let age = self.keys.current(context.now).map(|keys| keys.age(courteous));
        let due = self.timers.handshake_due(age, context.now);
        if due == Due::GiveUp {
            // The next packet or keepalive tries again. What waited is stale.
            self.forget_handshakes();
            context.drops.count_all(Drop::NoKeys, self.queue.clear());
        }
        let Some(to) = self.path else { return };
        if due == Due::Initiation {
            self.initiate(context, identity, to, out);
        }
        self.drain(context, out);
        if self.timers.owes_keepalive(context.now) && out.has_room() {
            self.seal(context, &[], to, out);
        }
        let persistent = keepalive.is_some_and(|interval| self.timers.is_idle_for(interval, context.now));
        if (persistent || keepalive.is_some() && self.keepalive_wanted) && out.has_room() {
            self.keepalive_wanted = false;
            // Without keys a handshake, which ends in an empty packet anyway.
            if !self.seal(context, &[], to, out) && !self.timers.is_waiting() {
                self.initiate(context, identity, to, out);
            }
            self.timers.postpone_keepalive(context.now);
        }
    }

    /// Puts a handshake message into the batch.
    fn emit(&mut self, context: &Context<'_>, message: &[u8], to: Path, out: &mut Datagrams) {
        self.tx_bytes += message.len() as u64;
        out.push(message, to.by(context.lane));
    }

    /// The sender has proved to be the peer: it can be reached where it sent from (roaming, whitepaper
    /// section 2.1).
    fn authenticated(&mut self, context: &Context<'_>, path: Path, data: bool) {
        self.path = Some(path);
        self.timers.received(data, context.now);
    }

    /// Counts a received datagram, WireGuard's overhead included (kernel `receive.c`, `update_rx_stats`).
    pub(super) fn account(&mut self, bytes: usize) {
        self.rx_bytes += bytes as u64;
    }
}

/// As what data that is not taken counts.
fn reason(error: Error) -> Drop {
    match error {
        Error::Replay => Drop::ReplayedData,
        Error::Index => Drop::UnknownIndex,
        Error::NoRoom => Drop::NoRoom,
        Error::Data | Error::WornOut | Error::Handshake | Error::Cookie => Drop::BadData,
    }
}
