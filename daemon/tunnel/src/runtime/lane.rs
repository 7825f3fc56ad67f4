//! One lane: a thread that owns one TUN queue and one UDP socket, and serves both directions.
//!
//! ```text
//!   wait for: TUN readable, UDP readable, wake-up, next tick
//!     UDP ──one batch──▶ decrypt ──▶ TUN          bounded batches in turn, so that a flood in one
//!     TUN ──one batch──▶ encrypt ──▶ UDP          direction does not starve the other, or the timers
//!     tick every 250 ms, or sooner while many handshakes are due
//! ```
//!
//! One thread for both directions is faster here than two: the packets of a TCP stream and their
//! acknowledgements share caches, and nobody waits for a lock.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::counters::{Counters, Io};
use super::interface::Interface;
use super::receiver::Receiver;
use super::sender::{BATCH, Sender};
use super::udp::Sockets;
use crate::device::{Clock, Count, Datagrams, Device, PAUSE, Packets};
use crate::offload::Malformed;
use crate::sys::tun::Queue;

/// Between two looks at the timers. WireGuard's are whole seconds.
const TICK: Duration = Duration::from_millis(250);

/// Packets in a batch for the TUN.
const PACKETS: usize = 128;

/// Packets that are handed on although more may be there: a super-packet has about as many, and what waits longer leaves
/// the processor's cache.
const ENOUGH: usize = 32;

/// Packets that are sent in one turn, about: 0.2 ms of work, for which what comes from the network waits.
const TURN: usize = 256;

/// Batches that are still taken from a socket before it is closed after a change of port.
const LAST_BATCHES: usize = 64;

/// What the lanes of one tunnel share, among each other and with the control thread.
pub struct Shared {
    /// The device.
    pub device: Device,
    /// What the system did not take.
    pub counters: Counters,
    sockets: Mutex<Arc<Sockets>>,
    /// Counts changes of `sockets`, so that lanes need not lock to see that there was none.
    generation: AtomicU64,
    stop: AtomicBool,
    wakers: Vec<EventFd>,
    /// Written by a lane that ends, for whatever reason.
    ended: EventFd,
}

impl Shared {
    /// The shared part of a tunnel with `lanes` lanes.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new(device: Device, sockets: Sockets, lanes: usize) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let waker = || EventFd::from_flags(flags);
        Ok(Self {
            device,
            counters: Counters::default(),
            sockets: Mutex::new(Arc::new(sockets)),
            generation: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wakers: (0..lanes).map(|_| waker()).collect::<Result<_, _>>()?,
            ended: waker()?,
        })
    }

    /// The present sockets.
    pub fn sockets(&self) -> Arc<Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the sockets; lanes take over at once, and empty the old ones first.
    pub fn set_sockets(&self, sockets: Sockets) {
        *self.sockets.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(sockets);
        self.generation.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Sends a batch by the newest sockets, also while the lane still holds others, which it does until it is woken. A
    /// handshake that left by the port of before would be answered there, and nobody would be listening.
    fn send(&self, held: &Held, sender: &mut Sender, batch: &mut Datagrams) {
        let newer = (!held.is_newest(self)).then(|| self.sockets());
        sender.send(newer.as_ref().unwrap_or(&held.sockets), batch, &self.counters);
    }

    /// Counts of packets that were lost, or of those that went another way than the usual, by name.
    pub fn counts(&self, lost: bool) -> impl Iterator<Item = Count> {
        self.device.drops().counts(lost).chain(self.counters.counts(lost))
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.wakers.len()
    }

    /// Makes all lanes look at what changed, and at their timers.
    pub fn wake(&self) {
        // EAGAIN means that nobody has looked at 2^64 wake-ups yet, so one more is not needed.
        for waker in &self.wakers {
            let _ = waker.write(1);
        }
    }

    /// Makes all lanes end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Readable once a lane has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }
}

/// The thread's own part.
pub struct Lane {
    number: usize,
    shared: Arc<Shared>,
    interface: Interface,
    held: Held,
    receiver: Receiver,
    sender: Sender,
    datagrams: Datagrams,
    packets: Packets,
    next_tick: Instant,
    /// Whether the last tick was the end of a round.
    round_over: bool,
}

/// The sockets that a lane reads, and their number.
struct Held {
    generation: u64,
    sockets: Arc<Sockets>,
}

impl Held {
    fn newest(shared: &Shared) -> Self {
        // In this order: sockets newer than the generation are looked at again, older ones would stay.
        let generation = shared.generation.load(Ordering::Acquire);
        Self { generation, sockets: shared.sockets() }
    }

    fn is_newest(&self, shared: &Shared) -> bool {
        self.generation == shared.generation.load(Ordering::Acquire)
    }
}

impl Lane {
    fn new(number: usize, shared: Arc<Shared>, queue: Queue) -> Self {
        Self {
            number,
            held: Held::newest(&shared),
            shared,
            interface: Interface::new(queue),
            receiver: Receiver::new(),
            sender: Sender::new(),
            datagrams: Datagrams::new(BATCH),
            packets: Packets::new(PACKETS),
            next_tick: Instant::now(),
            round_over: true,
        }
    }

    /// Serves lane `number` of a tunnel, on its TUN queue, until [`Shared::stop`]. To be run on a thread of
    /// its own.
    ///
    /// # Errors
    /// EBADFD when the interface was deleted. Nothing the network does is an error.
    pub fn run(number: usize, shared: Arc<Shared>, queue: Queue) -> io::Result<()> {
        let _ended = EndSignal(&shared);
        Self::new(number, shared.clone(), queue).serve()
    }

    fn serve(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if self.shared.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            if ready.woken {
                self.wake_up();
            }
            if ready.network {
                self.decrypt_batch()?;
            }
            if ready.tun {
                self.encrypt_batch()?;
            }
            let clock = Clock::system();
            if clock.now >= self.next_tick {
                self.tick(clock);
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let left = self.next_tick.saturating_duration_since(Instant::now());
        // Rounded up: a wait of 0 ms for the last half would spin.
        let timeout =
            PollTimeout::try_from(left.as_micros().div_ceil(1000) as i32).unwrap_or(PollTimeout::ZERO);
        let mut fds = [
            PollFd::new(self.shared.wakers[self.number].as_fd(), PollFlags::POLLIN),
            PollFd::new(self.held.sockets.lane(self.number).as_fd(), PollFlags::POLLIN),
            PollFd::new(self.interface.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Errors are events as well; reading tells which.
        let [woken, network, tun] = fds.map(|fd| fd.any().unwrap_or(true));
        Ok(Ready { woken, network, tun })
    }

    fn wake_up(&mut self) {
        // First the event, then what it stands for: a later change makes a later event.
        let _ = self.shared.wakers[self.number].read();
        self.next_tick = Instant::now();
        if self.held.is_newest(&self.shared) {
            return;
        }
        // What the old socket has received is not lost.
        for _ in 0..LAST_BATCHES {
            if !matches!(self.decrypt_batch(), Ok(received) if received > 0) {
                break;
            }
        }
        self.held = Held::newest(&self.shared);
    }

    /// One batch from the network to the TUN. Returns how many datagrams there were.
    fn decrypt_batch(&mut self) -> io::Result<usize> {
        let received = match self.receiver.receive(self.held.sockets.lane(self.number)) {
            Ok(received) => received,
            Err(error) => {
                // An ICMP message about something we sent; reading it has cleared it.
                tracing::debug!(lane = self.number, %error, "the UDP socket reports");
                return Ok(0);
            }
        };
        let Self { number, shared, interface, held, receiver, sender, datagrams, packets, .. } = self;
        let lane = shared.device.lane(*number, Clock::system());
        for run in receiver.runs(&shared.counters) {
            for datagram in run.datagrams() {
                if !packets.has_room() {
                    interface.write(packets, &shared.counters)?;
                }
                if !datagrams.has_room() {
                    shared.send(held, sender, datagrams);
                }
                lane.datagram(run.path, datagram, datagrams, packets);
            }
            if packets.len() >= ENOUGH {
                interface.write(packets, &shared.counters)?;
            }
        }
        drop(lane);
        interface.write(packets, &shared.counters)?;
        shared.send(held, sender, datagrams);
        Ok(received)
    }

    /// One batch from the TUN to the network.
    fn encrypt_batch(&mut self) -> io::Result<()> {
        let Self { number, shared, interface, held, sender, datagrams, .. } = self;
        let lane = shared.device.lane(*number, Clock::system());
        let (mut reads, mut sent) = (0, 0);
        while reads < BATCH && sent < TURN {
            reads += 1;
            match interface.read(&shared.counters)? {
                None => break,
                Some(Err(Malformed)) => shared.counters.count(Io::Malformed, 1),
                Some(Ok(segments)) if segments.is_empty() => shared.counters.count(Io::Malformed, 1),
                Some(Ok(mut segments)) => {
                    while !segments.is_empty() {
                        if !datagrams.has_room() {
                            shared.send(held, sender, datagrams);
                        }
                        lane.packets(&mut segments, datagrams);
                    }
                }
            }
            if datagrams.len() >= ENOUGH {
                sent += datagrams.len();
                shared.send(held, sender, datagrams);
            }
        }
        drop(lane);
        shared.send(held, sender, datagrams);
        Ok(())
    }

    fn tick(&mut self, clock: Clock) {
        if self.number == 0
            && self.round_over
            && let Ok(mtu) = self.interface.mtu()
        {
            self.shared.device.set_mtu(mtu);
        }
        let Self { shared, held, sender, datagrams, number, .. } = self;
        let flush = |full: &mut Datagrams| shared.send(held, sender, full);
        self.round_over = shared.device.tick(*number, clock, datagrams, flush);
        shared.send(held, sender, datagrams);
        // From now on: what was done has taken time.
        self.next_tick = Instant::now() + if self.round_over { TICK } else { PAUSE };
    }
}

/// Which of a lane's descriptors have something to say.
struct Ready {
    woken: bool,
    network: bool,
    tun: bool,
}

/// Tells the control thread that a lane has ended, however that happened: by a panic as well.
struct EndSignal<'a>(&'a Shared);

impl Drop for EndSignal<'_> {
    fn drop(&mut self) {
        let _ = self.0.ended.write(1);
    }
}

#[cfg(test)]
#[path = "allocation_tests.rs"]
mod allocation_tests;

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
