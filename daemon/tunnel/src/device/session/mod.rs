//! One peer's cryptographic session on one lane: boringtun's `Tunn`, and what it leaves to its user.
//!
//! A `Tunn` fixes its keys when it is made, forgets its statistics with its sessions, and drops all of its
//! sessions when a key changes. So a session here holds several:
//!
//! ```text
//!   key changes       ┌───────────┐  new PSK: also sends until `current` can   ┌─────────┐
//!  ────────────────▶  │ retiring  │ ──────────────────────────────────────────▶│ dropped │
//!  (current, if built)│ receives  │  after REJECT_AFTER_TIME                   └─────────┘
//!                     └───────────┘
//!                     ┌───────────┐
//!  fresh index ─────▶ │ current   │  handshakes, sends, receives; built when first needed
//!                     └───────────┘
//! ```
//!
//! Initiations of the peer are answered by a third `Tunn`, `answering`, which takes the place of `current` with
//! the first packet under its keys: until then nobody has proved to have them. boringtun keeps answered
//! sessions in the same ring of eight as the one in use, so eight initiations that are replayed, or that
//! cannot be completed because the PSKs differ, would silently replace a live session.
//!
//! Whatever is in flight under old keys still arrives, and a peer whose other end does not know the new
//! PSK yet is not cut off. A new private key, as in the kernel, ends sending under old keys at once.
//!
//! Building a `Tunn` costs a Diffie-Hellman. It happens on first use, not while the whole device is locked
//! for a new configuration, so a thousand new peers do not stall anybody's packets.
//!
//! REKEY_AFTER_MESSAGES (2^60) and, when sending, REJECT_AFTER_MESSAGES (2^64 - 2^13 - 1) are not counted:
//! within the 180 seconds after which boringtun drops a session, they would take 10^16 packets per second.

mod queue;
mod rekey;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use x25519_dalek::PublicKey;

use super::Context;
use super::batch::{Datagrams, Packets, Path};
use super::config::Identity;
use super::drops::Drop;
use crate::uapi::SecretKey;

pub use queue::Budget;
use queue::Queue;
#[cfg(test)]
pub use queue::WAITING_BYTES;

/// Keys are not used for longer (whitepaper section 6.1).
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Counters from here on are refused when receiving (whitepaper section 6.1).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Without new keys by then, whoever sends asks for them, initiator or not: when two initiations cross, both
/// sides may end up as the one that was asked. Later than the initiator's last moment to do it
/// (REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT, 165 s).
const REKEY_AT_LAST: Duration = Duration::from_secs(170);
/// Whoever has not sent for so long does not need keys (REKEY_TIMEOUT + KEEPALIVE_TIMEOUT).
const SENDS: Duration = Duration::from_secs(15);
/// Indices that a session needs: for current, answering and retiring keys.
pub(super) const INDICES: usize = 2 + RETIRING;
/// How many former keys are kept.
const RETIRING: usize = 2;
/// The length of an initiation, in bytes. A keepalive, all else that a `Tunn` sends by itself, has 32.
const INITIATION: usize = 148;
/// For how long one `Tunn` answers: its clock stands still until it is used.
const ANSWERS: Duration = Duration::from_secs(10);
/// A peer's initiations are at least this far apart (kernel `noise.c`, INITIATIONS_PER_SECOND = 50).
const INITIATION_SPACING: Duration = Duration::from_millis(20);

/// See the module's text.
pub struct Session {
    peer: PublicKey,
    psk: Option<SecretKey>,
    current: Keys,
    /// The newest last. More than one, because the peer may send under other keys than we do: where two
    /// handshakes have crossed, each end takes those it was asked for.
    retiring: Vec<Retiring>,
    answering: Option<Answering>,
    /// Indices that lead to this session and are not in use.
    free: Vec<u32>,
    /// Packets that wait for keys, or for room in a batch. Not in a `Tunn`, which takes them to its grave.
    queue: Queue,
    path: Option<Path>,
    rx_bytes: u64,
    tx_bytes: u64,
    last_handshake: Option<SystemTime>,
    /// When the keys in use were agreed on.
    established: Option<Instant>,
    last_initiation: Option<Instant>,
    /// The last initiation that was answered. A fresh `Tunn` learns from it which ones are replays.
    answered: Option<Box<[u8]>>,
    /// When a packet of a user was last sent.
    last_sent: Option<Instant>,
    /// When a packet last went in either direction: the base of persistent keepalives.
    last_traversal: Option<Instant>,
    keepalive_wanted: bool,
}

/// A `Tunn` and the upper 24 bits of all its receiver indices.
struct Keys {
    index: u32,
    tunn: Option<Box<Tunn>>,
    /// Whether the `Tunn` has keys to send under. It is asked only after what can change that (the end of a handshake,
    /// its timers), not for each packet, because for an answer it looks at the clock.
    live: bool,
}

/// A `Tunn` that answers initiations, and whose sessions nobody has used yet.
struct Answering {
    index: u32,
    tunn: Box<Tunn>,
    built: Instant,
}

struct Retiring {
    index: u32,
    tunn: Box<Tunn>,
    may_send: bool,
    until: Instant,
}

impl Retiring {
    fn sends(&self, now: Instant) -> bool {
        self.may_send && now < self.until
    }
}

/// What a `Tunn` did, without the borrow of the buffer: its output always starts where the buffer does.
enum Outcome {
    Nothing,
    Datagram(usize),
    Packet(usize, IpAddr),
    Failed(WireGuardError),
}

impl From<TunnResult<'_>> for Outcome {
    fn from(result: TunnResult<'_>) -> Self {
        match result {
            TunnResult::Done => Self::Nothing,
            TunnResult::Err(error) => Self::Failed(error),
            TunnResult::WriteToNetwork(datagram) => Self::Datagram(datagram.len()),
            TunnResult::WriteToTunnelV4(packet, source) => Self::Packet(packet.len(), source.into()),
            TunnResult::WriteToTunnelV6(packet, source) => Self::Packet(packet.len(), source.into()),
        }
    }
}

impl Session {
    /// `indices` all lead to this session.
    pub(super) fn new(peer: PublicKey, [index, free @ ..]: [u32; INDICES], budget: Arc<Budget>) -> Self {
        Self {
            peer,
            psk: None,
            current: Keys { index, tunn: None, live: false },
            retiring: Vec::new(),
            answering: None,
            free: free.into(),
            queue: Queue::new(budget),
            path: None,
            rx_bytes: 0,
            tx_bytes: 0,
            last_handshake: None,
            established: None,
            last_initiation: None,
            answered: None,
            last_sent: None,
            last_traversal: None,
            keepalive_wanted: false,
        }
    }

    /// Sends an IP packet, already padded, or with no bytes a keepalive. Without keys it is queued and a
    /// handshake starts. Needs room for one datagram; uses it for two if there is.
    pub(super) fn send(&mut self, context: &Context<'_>, packet: &[u8], out: &mut Datagrams) {
        let Some(identity) = context.identity else { return context.drops.count(Drop::NoPrivateKey) };
        let Some(to) = self.path else { return context.drops.count(Drop::NoEndpoint) };
        self.current.build(identity, &self.peer, &self.psk);
        if !packet.is_empty() {
            self.last_sent = Some(context.now);
        }
        if self.current.live {
            return self.send_in_order(context, packet, to, out);
        }
        if let Some(old) = self.retiring.iter_mut().rev().find(|old| old.sends(context.now)) {
            let outcome = old.tunn.encapsulate(packet, out.room()).into();
            self.emit(context, outcome, to, out);
        } else {
            self.enqueue(context, packet);
        }
        self.handshake(context, to, out);
    }

    /// Sends a packet under the current keys, behind those that waited for them.
    fn send_in_order(&mut self, context: &Context<'_>, packet: &[u8], to: Path, out: &mut Datagrams) {
        self.drain(context, out);
        if !self.queue.is_empty() || !out.has_room() {
            return self.enqueue(context, packet);
        }
        if let Some(tunn) = self.current.established() {
            let outcome = tunn.encapsulate(packet, out.room()).into();
            self.emit(context, outcome, to, out);
        }
    }

    fn enqueue(&mut self, context: &Context<'_>, packet: &[u8]) {
        // A keepalive is not worth waiting for: what else is sent is as good.
        if !packet.is_empty()
            && let Err(reason) = self.queue.push(packet)
        {
            context.drops.count(reason);
        }
    }

    /// Starts a handshake, unless one is under way.
    fn handshake(&mut self, context: &Context<'_>, to: Path, out: &mut Datagrams) {
        if let Some(tunn) = &mut self.current.tunn
            && out.has_room()
        {
            let outcome = tunn.format_handshake_initiation(out.room(), false).into();
            if matches!(outcome, Outcome::Datagram(_)) {
                context.begin();
            }
            self.emit(context, outcome, to, out);
        }
    }

    /// Decrypts a data message into the free room of `packets`. Returns length and inner source address of
    /// the packet; it is not committed, because the address is still to be checked.
    pub(super) fn receive_data(
        &mut self,
        context: &Context<'_>,
        message: Message<'_>,
        out: &mut Datagrams,
        packets: &mut Packets,
    ) -> Option<(usize, IpAddr)> {
        let counter =
            message.bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        if counter.is_none_or(|counter| counter >= REJECT_AFTER_MESSAGES) {
            context.drops.count(Drop::BadData);
            return None;
        }
        let index = message.index >> 8;
        let answered = self.answering.as_ref().is_some_and(|answering| answering.index == index);
        let tunn = match &mut self.answering {
            Some(answering) if answering.index == index => Some(&mut answering.tunn),
            _ if self.current.index == index => self.current.tunn.as_mut(),
            _ => {
                let live = |old: &&mut Retiring| old.index == index && context.now < old.until;
                self.retiring.iter_mut().find(live).map(|old| &mut old.tunn)
            }
        };
        let Some(tunn) = tunn else {
            context.drops.count(Drop::UnknownIndex);
            return None;
        };
        let packet = match tunn.decapsulate(None, message.bytes, packets.room()).into() {
            Outcome::Packet(len, source) => Some((len, source)),
            Outcome::Nothing | Outcome::Datagram(_) => None,
            Outcome::Failed(error) => {
                context.drops.count(match error {
                    WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Drop::UnknownIndex,
                    // Our caller has parsed the message, so this is about what was inside.
                    WireGuardError::InvalidPacket => Drop::BadPacket,
                    WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => Drop::ReplayedData,
                    _ => Drop::BadData,
                });
                return None;
            }
        };
        self.authenticated(context, message.path);
        if answered {
            self.confirm(context.now);
            self.complete_handshake(context);
            self.drain(context, out);
        }
        if packet.is_none() {
            self.account(message.bytes.len());
        }
        packet
    }

    /// Answers an initiation. Its sender is authenticated, but it may be a replay that our `Tunn` is too
    /// young to know, so the endpoint follows only once the initiator uses the keys (the next packet).
    pub(super) fn receive_initiation(
        &mut self,
        context: &Context<'_>,
        identity: &Identity,
        message: Message<'_>,
        out: &mut Datagrams,
    ) {
        let too_soon = |last: Instant| context.now.saturating_duration_since(last) < INITIATION_SPACING;
        if self.last_initiation.is_some_and(too_soon) {
            return context.drops.count(Drop::ReplayedHandshake);
        }
        let Some(tunn) = self.answering(identity, context.now) else { return };
        match tunn.decapsulate(None, message.bytes, out.room()).into() {
            Outcome::Datagram(len) => {
                self.last_initiation = Some(context.now);
                self.answered = Some(message.bytes.into());
                self.account(message.bytes.len());
                self.emit(context, Outcome::Datagram(len), message.path, out);
            }
            Outcome::Failed(WireGuardError::WrongTai64nTimestamp) => {
                context.drops.count(Drop::ReplayedHandshake);
            }
            _ => context.drops.count(Drop::BadHandshake),
        }
    }

    /// Completes a handshake of ours: keys are there, queued packets leave.
    pub(super) fn receive_response(
        &mut self,
        context: &Context<'_>,
        message: Message<'_>,
        out: &mut Datagrams,
    ) {
        let tunn = self.current.tunn.as_mut().filter(|_| self.current.index == message.index >> 8);
        let Some(tunn) = tunn else { return context.drops.count(Drop::UnknownIndex) };
        match tunn.decapsulate(None, message.bytes, out.room()).into() {
            Outcome::Datagram(len) => {
                self.current.look();
                self.authenticated(context, message.path);
                self.account(message.bytes.len());
                self.complete_handshake(context);
                self.emit(context, Outcome::Datagram(len), message.path, out);
                self.drain(context, out);
            }
            _ => context.drops.count(Drop::BadHandshake),
        }
    }

    /// Remembers a cookie for the next try of our handshake, or for our next answer.
    pub(super) fn receive_cookie(
        &mut self,
        context: &Context<'_>,
        message: Message<'_>,
        out: &mut Datagrams,
    ) {
        let index = message.index >> 8;
        let tunn = match &mut self.answering {
            Some(answering) if answering.index == index => Some(&mut answering.tunn),
            _ if self.current.index == index => self.current.tunn.as_mut(),
            _ => None,
        };
        let Some(tunn) = tunn else { return context.drops.count(Drop::UnknownIndex) };
        if let Outcome::Failed(_) = tunn.decapsulate(None, message.bytes, out.room()).into() {
            context.drops.count(Drop::BadHandshake);
        }
    }

    /// Does what is due: retransmissions, rekeying, keepalives, expiry. Returns the index of retired keys
    /// whose time is over. Needs room for one datagram.
    pub(super) fn tick(
        &mut self,
        context: &Context<'_>,
        keepalive: Option<Duration>,
        out: &mut Datagrams,
    ) -> Option<u32> {
        let over = self.forget_old_keys(context.now);
        if context.identity.is_none() {
            // What waited for keys is stale before there is a private key again.
            context.drops.count_all(Drop::NoPrivateKey, self.queue.clear());
        }
        if let Some(tunn) = &mut self.current.tunn {
            match (tunn.update_timers(out.room()).into(), self.path) {
                (Outcome::Datagram(len), Some(to)) => {
                    if len == INITIATION {
                        context.begin();
                    }
                    self.emit(context, Outcome::Datagram(len), to, out);
                }
                // It says so for ever; the next packet or keepalive revives it. What waited is stale.
                (Outcome::Failed(WireGuardError::ConnectionExpired), _) => {
                    context.drops.count_all(Drop::NoKeys, self.queue.clear());
                }
                _ => {}
            }
            self.current.look();
        }
        self.drain(context, out);
        if self.is_late_for_rekey(context.now)
            && let Some(to) = self.path
        {
            self.handshake(context, to, out);
        }
        if keepalive.is_some_and(|interval| self.keepalive_due(context, interval)) && out.has_room() {
            self.send_keepalive(context, out);
        }
        over
    }

    fn keepalive_due(&self, context: &Context<'_>, interval: Duration) -> bool {
        let idle = |last: Instant| context.now.saturating_duration_since(last) >= interval;
        let due = self.keepalive_wanted || self.last_traversal.is_none_or(idle);
        due && context.identity.is_some() && self.path.is_some()
    }

    /// With keys an empty packet. Without, a handshake, which ends in an empty packet anyway: queueing one
    /// each time would let them pile up behind a peer that is away.
    fn send_keepalive(&mut self, context: &Context<'_>, out: &mut Datagrams) {
        let (Some(identity), Some(to)) = (context.identity, self.path) else { return };
        self.keepalive_wanted = false;
        self.last_traversal = Some(context.now);
        self.current.build(identity, &self.peer, &self.psk);
        if self.can_send(context.now) {
            self.send(context, &[], out)
        } else {
            self.handshake(context, to, out)
        }
    }

    /// Sends the packets that waited for keys. What does not fit waits for the next tick.
    fn drain(&mut self, context: &Context<'_>, out: &mut Datagrams) {
        if self.queue.is_empty() {
            return;
        }
        let (Some(tunn), Some(to)) = (self.current.established(), self.path) else { return };
        while out.has_room() {
            let Some(packet) = self.queue.pop() else { return };
            if let Outcome::Datagram(len) = tunn.encapsulate(&packet, out.room()).into() {
                self.tx_bytes += len as u64;
                out.commit(len, to.by(context.lane));
            }
        }
        if !self.queue.is_empty() {
            context.drops.count(Drop::Deferred);
        }
    }

    /// Puts what a `Tunn` wrote into the batch, if it wrote something.
    fn emit(&mut self, context: &Context<'_>, outcome: Outcome, to: Path, out: &mut Datagrams) {
        if let Outcome::Datagram(len) = outcome {
            self.tx_bytes += len as u64;
            self.last_traversal = Some(context.now);
            out.commit(len, to.by(context.lane));
        }
    }

    /// The sender has proved to be the peer: it can be reached where it sent from (roaming, whitepaper
    /// section 2.1).
    fn authenticated(&mut self, context: &Context<'_>, path: Path) {
        self.path = Some(path);
        self.last_traversal = Some(context.now);
    }

    fn complete_handshake(&mut self, context: &Context<'_>) {
        self.established = Some(context.now);
        self.last_handshake = Some(context.wall);
    }

    /// Counts a received datagram, WireGuard's overhead included (kernel `receive.c`, `update_rx_stats`).
    pub(super) fn account(&mut self, bytes: usize) {
        self.rx_bytes += bytes as u64;
    }

    fn can_send(&self, now: Instant) -> bool {
        self.current.live || self.retiring.iter().any(|old| old.sends(now))
    }
}

/// A WireGuard message of which the form is right, and nothing else is known yet.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    pub(super) path: Path,
    /// Its receiver index; 0 for initiations, which have none.
    pub(super) index: u32,
    pub(super) bytes: &'a [u8],
}

impl Keys {
    fn build(&mut self, identity: &Identity, peer: &PublicKey, psk: &Option<SecretKey>) {
        self.tunn.get_or_insert_with(|| {
            let psk = psk.as_ref().map(|psk| **psk);
            let limiter = Some(identity.gate.inner());
            // Persistent keepalives are ours: a Tunn cannot change them.
            Box::new(Tunn::new(identity.private.clone(), *peer, psk, None, self.index, limiter))
        });
    }

    fn look(&mut self) {
        self.live = self.tunn.as_ref().is_some_and(|tunn| tunn.time_since_last_handshake().is_some());
    }

    /// The `Tunn`, if it has keys to send under.
    fn established(&mut self) -> Option<&mut Tunn> {
        self.tunn.as_deref_mut().filter(|_| self.live)
    }
}
