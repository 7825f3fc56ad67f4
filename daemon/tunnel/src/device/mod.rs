//! A WireGuard device without input or output: packets and datagrams in, datagrams and packets out.
//!
//! ```text
//!        TUN ─segments─▶ Lane::packets ─┐                     ┌──▶ Datagrams ──▶ UDP
//!        UDP ──datagram─▶ Lane::datagram ┼─▶ allowed IPs, ────┤
//!     clock ──tick─────▶ Device::tick ───┘   peers, sessions  └──▶ Packets ────▶ TUN
//!  `set=1` ──update────▶ Device::apply
//! ```
//!
//! There are no sockets, threads or sleeps here, so two devices can be joined by a test that sees, drops,
//! repeats and garbles whatever passes between them. Time comes in with each call ([`Clock`]).
//!
//! **Lanes.** Several threads may use a device at once. Each takes a [`Lane`] for one batch of packets: a
//! read lock on the configuration, released when it is dropped. Within it, a packet locks the one session
//! it belongs to. Locks are always taken in this order, and at most one session at a time. What a thread sends goes by
//! its own lane's session, if the peer has that lane; otherwise several share one.

mod admission;
mod allowed_ips;
mod batch;
mod config;
mod drops;
mod peer;
mod session;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

pub use admission::HANDSHAKES_PER_SECOND;
pub use batch::{Batch, Datagrams, Destination, MAX_PACKET, Packets, Path, ROOM, Run};
pub use config::{ApplyError, canonical};
pub use drops::{Count, Drop, Drops};

use admission::Verdict;
use config::{Identity, Table};
use peer::PublicKey;

use crate::noise::handshake::Responder;
use crate::noise::message::{CookieReply, Data, Handshake, Initiation, Message, Response};
use crate::offload::{SPARE, Segments};
use crate::uapi::{DeviceState, DeviceUpdate};

/// Bytes to which plaintext is padded, so that lengths tell less (whitepaper section 5.4.6).
pub const PADDING: usize = 16;
const _: () = assert!(PADDING <= SPARE, "segments leave room for their padding");

/// What WireGuard adds to a packet, in bytes: type, index, counter and tag (whitepaper section 5.4.6).
pub const OVERHEAD: usize = 32;

/// Handshakes that a lane begins at most in one tick: each costs two Diffie-Hellman of about 50 µs, or three where it is
/// the first, and packets wait meanwhile, for a millisecond. Without a limit, those of 1,000 peers that are all due (after
/// a restart, or two minutes after one) took 0.2 s.
pub const HANDSHAKES_PER_TICK: usize = 8;

/// How long packets have the lane for themselves before the next handshakes: with 8 in between, 1,600 a second. Handshakes
/// that have begun at once so come apart, as they do later by the jitter of the timers.
pub const PAUSE: Duration = Duration::from_millis(5);

/// The time of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For everything that elapses.
    pub now: Instant,
    /// For what people read, the time of the last handshake, and for what peers compare, that in our initiations.
    pub wall: SystemTime,
}

impl Clock {
    /// The system's time.
    pub fn system() -> Self {
        Self { now: Instant::now(), wall: SystemTime::now() }
    }
}

/// See the module's text.
pub struct Device {
    table: RwLock<Table>,
    drops: Drops,
    mtu: AtomicUsize,
    last_second: Mutex<Instant>,
    /// For each lane, how many peers have had their turn in its present round of ticks.
    turns: Box<[AtomicUsize]>,
}

/// What all of a session's work needs to know.
struct Context<'a> {
    identity: Option<&'a Identity>,
    drops: &'a Drops,
    /// The lane of the session at work, whose socket its datagrams leave by.
    lane: usize,
    now: Instant,
    wall: SystemTime,
    /// Handshakes begun.
    begun: Cell<usize>,
}

impl Context<'_> {
    fn begin(&self) {
        self.begun.set(self.begun.get() + 1);
    }
}

impl Device {
    /// A device without keys and peers. `mtu` is that of the TUN, in bytes; `lanes` is 1 at least. Above
    /// `handshakes_per_second` it asks for cookies; [`HANDSHAKES_PER_SECOND`] is right outside of tests.
    pub fn new(mtu: usize, lanes: u16, handshakes_per_second: u64, now: Instant) -> Self {
        Self {
            table: RwLock::new(Table::new(handshakes_per_second, lanes)),
            drops: Drops::default(),
            mtu: AtomicUsize::new(mtu),
            last_second: Mutex::new(now),
            turns: (0..lanes).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// Changes the configuration. Port and mark are the caller's, who owns the sockets.
    ///
    /// # Errors
    /// Then nothing was changed.
    pub fn apply(&self, update: &DeviceUpdate, now: Instant) -> Result<(), ApplyError> {
        self.check(update)?;
        self.table.write().unwrap_or_else(PoisonError::into_inner).apply(update, now);
        Ok(())
    }

    /// Whether [`apply`](Self::apply) would succeed.
    ///
    /// # Errors
    /// Those of `apply`.
    pub fn check(&self, update: &DeviceUpdate) -> Result<(), ApplyError> {
        self.read().check(update)
    }

    /// The state of the device; port and mark are 0.
    pub fn state(&self) -> DeviceState {
        self.read().state()
    }

    /// The MTU of the TUN changed: padding does not go beyond it.
    pub fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// What was dropped so far.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Opens lane `number` for one batch of packets.
    pub fn lane(&self, number: usize, clock: Clock) -> Lane<'_> {
        Lane { device: self, table: self.read(), number, clock, last_source: Cell::new(None) }
    }

    /// Does what is due on the sessions of a lane, until [`HANDSHAKES_PER_TICK`] were begun. Says whether all had their
    /// turn: then the next round is to begin in 250 ms, otherwise this one goes on after [`PAUSE`]. `flush` is called
    /// with a full batch and has to empty it; what is left in it at the end is the caller's.
    pub fn tick(
        &self,
        lane: usize,
        clock: Clock,
        out: &mut Datagrams,
        mut flush: impl FnMut(&mut Datagrams),
    ) -> bool {
        let table = self.read();
        if let Some(identity) = &table.identity
            && self.is_new_second(clock.now)
        {
            identity.gate.new_second(clock.now);
        }
        let context = self.context(&table, lane, clock);
        // Peers that come or go meanwhile may change the order: then one has two turns, another its own in the next round.
        let turn = &self.turns[lane];
        let first = turn.swap(0, Ordering::Relaxed);
        let mut all = true;
        for (number, peer) in table.peers().enumerate().skip(first) {
            if !out.has_room() {
                flush(out);
            }
            if let Some(mut session) = peer.session(lane) {
                // A lane that is no longer used only ends what it has begun.
                let keepalive = peer.keepalive_interval().filter(|_| lane < peer.lanes().into());
                session.tick(&context, keepalive, out);
            }
            if context.begun.get() >= HANDSHAKES_PER_TICK {
                turn.store(number + 1, Ordering::Relaxed);
                all = false;
                break;
            }
        }
        all
    }

    /// How many receiver indices lead to a session, and how many bytes wait for keys.
    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        let table = self.read();
        (table.indices(), table.waiting.taken())
    }

    /// How many keys of handshakes there are, of all peers.
    #[cfg(test)]
    fn keys_held(&self) -> usize {
        let table = self.read();
        table.peers().flat_map(|peer| peer.sessions()).map(|(_, session)| session.keys_held()).sum()
    }

    fn is_new_second(&self, now: Instant) -> bool {
        let mut last = self.last_second.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(*last) >= Duration::from_secs(1);
        if elapsed {
            *last = now;
        }
        elapsed
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn context<'a>(&'a self, table: &'a Table, lane: usize, clock: Clock) -> Context<'a> {
        let Clock { now, wall } = clock;
        Context {
            identity: table.identity.as_ref(),
            drops: &self.drops,
            lane,
            now,
            wall,
            begun: Cell::new(0),
        }
    }
}

/// A device, opened for one batch by one lane. Configuration changes wait until it is dropped.
pub struct Lane<'a> {
    device: &'a Device,
    table: RwLockReadGuard<'a, Table>,
    number: usize,
    clock: Clock,
    /// The last inner source address, and whose it is: most packets of a batch have the same.
    last_source: Cell<Option<(IpAddr, PublicKey)>>,
}

impl Lane<'_> {
    /// What came from the TUN as one: segments of a packet, all with one destination. Takes as many as fit into `out`;
    /// the caller empties it and calls again while there are any.
    pub fn packets(&self, segments: &mut Segments<'_>, out: &mut Datagrams) {
        if !out.has_room() {
            return self.drop(Drop::NoRoom);
        }
        let Some(destination) = allowed_ips::destination(segments.head()) else {
            return self.drop_all(segments, Drop::NotIp);
        };
        let Some(peer) = self.table.allowed.lookup(destination) else {
            return self.drop_all(segments, Drop::NoPeer);
        };
        let mtu = self.device.mtu.load(Ordering::Relaxed);
        let (lane, mut session) = peer.session_for(self.number);
        let context = self.context(lane);
        while out.has_room()
            && let Some((buffer, len)) = segments.take()
        {
            let padded = padded_len(len, mtu);
            buffer[len..padded].fill(0);
            session.send(&context, &buffer[..padded], out);
        }
    }

    /// A datagram from the network, any bytes from anybody. `out` and `packets` must have room.
    pub fn datagram(&self, path: impl Into<Path>, bytes: &[u8], out: &mut Datagrams, packets: &mut Packets) {
        if bytes.len() > MAX_PACKET {
            return self.drop(Drop::Invalid);
        }
        if !out.has_room() || !packets.has_room() {
            return self.drop(Drop::NoRoom);
        }
        let Path { remote, local } = path.into();
        let path = Path { remote: canonical(remote), local: local.map(|local| local.to_canonical()) };
        match Message::parse(bytes) {
            Some(Message::Data(data)) => self.data(&data, path, bytes.len(), out, packets),
            Some(Message::Initiation(initiation)) => self.initiation(&initiation, path, out),
            Some(Message::Response(response)) => self.response(&response, path, out),
            Some(Message::CookieReply(cookie)) => self.cookie(&cookie),
            None => self.drop(Drop::Invalid),
        }
    }

    fn data(&self, data: &Data<'_>, path: Path, len: usize, out: &mut Datagrams, packets: &mut Packets) {
        let Some((peer, lane)) = self.table.by_index(data.receiver()) else {
            return self.drop(Drop::UnknownIndex);
        };
        let Some(mut session) = peer.session(lane) else { return };
        let received = session.receive_data(&self.context(lane), data, path, out, packets);
        let Some((packet, source)) = received else { return };
        if self.owner(source) == Some(peer.public_key) {
            session.account(len);
            packets.commit(packet, ());
        } else {
            self.drop(Drop::BadSource);
        }
    }

    /// Whose an inner source address is.
    fn owner(&self, source: IpAddr) -> Option<PublicKey> {
        if let Some((last, owner)) = self.last_source.get()
            && last == source
        {
            return Some(owner);
        }
        let owner = self.table.allowed.lookup(source)?.public_key;
        self.last_source.set(Some((source, owner)));
        Some(owner)
    }

    /// The gate first, then two Diffie-Hellman to learn who it is, then the rest.
    fn initiation(&self, initiation: &Initiation<'_>, path: Path, out: &mut Datagrams) {
        let Some(identity) = &self.table.identity else { return self.drop(Drop::NoPrivateKey) };
        if !self.admit(identity, initiation, path, out) {
            return;
        }
        let Ok(responder) = Responder::read(&identity.local, initiation) else {
            return self.drop(Drop::BadHandshake);
        };
        let Some(peer) = self.table.peer(responder.peer().as_bytes()) else {
            return self.drop(Drop::BadHandshake);
        };
        let (lane, mut session) = peer.session_for(self.number);
        session.receive_initiation(&self.context(lane), responder, path, out);
    }

    /// Who answers nothing of ours is dropped before the gate, so a flood with wrong indices neither costs
    /// nor counts. A right index makes it pass the gate like any handshake: it can be overheard.
    fn response(&self, response: &Response<'_>, path: Path, out: &mut Datagrams) {
        let Some(identity) = &self.table.identity else { return self.drop(Drop::NoPrivateKey) };
        let Some((peer, lane)) = self.table.by_index(response.receiver()) else {
            return self.drop(Drop::UnknownIndex);
        };
        if !self.admit(identity, response, path, out) {
            return;
        }
        let Some(mut session) = peer.session(lane) else { return };
        session.receive_response(&self.context(lane), response, path, out);
    }

    fn cookie(&self, cookie: &CookieReply<'_>) {
        let Some((peer, lane)) = self.table.by_index(cookie.receiver()) else {
            return self.drop(Drop::UnknownIndex);
        };
        let Some(mut session) = peer.session(lane) else { return };
        session.receive_cookie(&self.context(lane), cookie);
    }

    fn admit(&self, identity: &Identity, message: &impl Handshake, path: Path, out: &mut Datagrams) -> bool {
        match identity.gate.judge(message, path.remote, self.clock.now) {
            Verdict::Admit => return true,
            Verdict::Refuse(reason) => self.drop(reason),
            Verdict::Cookie(reply) => {
                // It belongs to no session yet, so it leaves by the way the handshake came.
                out.push(&reply, path.by(self.number));
                self.drop(Drop::CookieSent);
            }
        }
        false
    }

    fn context(&self, lane: usize) -> Context<'_> {
        self.device.context(&self.table, lane, self.clock)
    }

    fn drop(&self, reason: Drop) {
        self.device.drops.count(reason);
    }

    fn drop_all(&self, segments: &mut Segments<'_>, reason: Drop) {
        while segments.take().is_some() {
            self.drop(reason);
        }
    }
}

/// The length of a packet with padding: a multiple of 16, but not beyond the MTU (kernel `send.c`,
/// `calculate_skb_padding`).
fn padded_len(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu.max(len))
}
