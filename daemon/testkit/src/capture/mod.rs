//! A sniffer on the underlay that counts what each packet is, and loses none.
//!
//! It listens to the ports of the underlay's bridge for frames that *arrive* there. Every machine is behind
//! its own port, so each frame is counted once, whoever sends it and wherever it goes. Should the kernel
//! have dropped a single frame for lack of room, the count proves nothing, and [`Report::no_clear_text`]
//! fails.
//!
//! Machines on veth hand over large segments before they are cut (GSO): one frame counted here may be up
//! to 64 KiB on the way to becoming several packets.

mod classify;
mod packet_socket;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nametoindex;

use crate::lab::Lab;
use crate::netns::Netns;

pub use classify::{Class, Header, Offender, Rules};
pub use packet_socket::FrameSender;
use packet_socket::{Frame, Ring};

/// 16 bytes that all traffic of the kit carries in its payload, so that what was masqueraded or
/// encapsulated beyond recognition is still recognised as clear text.
pub const CANARY: &[u8; 16] = b"warren's canary!";

/// The ports that a mesh may use: two sides of up to 8 lanes.
pub const MESH_PORTS: RangeInclusive<u16> =
    warren_api::names::LISTEN_PORT..=warren_api::names::LISTEN_PORT + 15;

/// So many offending packets are kept to be shown.
const OFFENDERS_KEPT: usize = 20;

/// The EtherType of the frames that mark a moment in the ring: IEEE 802 local experimental 1.
const MARKER_TYPE: [u8; 2] = [0x88, 0xb5];

/// What was seen, in frames.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// WireGuard messages of all types.
    pub wireguard: u64,
    /// Of these, those that carry packets (type 4; keepalives are among them).
    pub wireguard_data: u64,
    /// The largest frame among them, in bytes from the Ethernet header on.
    pub largest: u32,
    /// Packets in the clear.
    pub clear: u64,
    /// ARP, neighbour discovery, probes of paths, and the like.
    pub control: u64,
    /// Fragments of packets that are not clear text.
    pub fragments: u64,
    /// Whatever else, not of pods.
    pub other: u64,
    /// Sent by or to machines outside of the cluster.
    pub outside: u64,
    /// Frames the kernel had no room for: with any, the other numbers prove nothing.
    pub dropped: u64,
    /// The first packets in the clear, as lines of text.
    pub offenders: Vec<String>,
}

impl Report {
    /// All frames seen.
    pub fn total(&self) -> u64 {
        self.wireguard + self.clear + self.control + self.fragments + self.other + self.outside
    }

    /// Fails when a packet was in the clear, or might have been.
    pub fn no_clear_text(&self) -> Result<()> {
        ensure!(
            self.dropped == 0,
            "inconclusive: the kernel dropped {} frames of the capture; run this on a less busy machine",
            self.dropped
        );
        ensure!(
            self.clear == 0,
            "{} packets in the clear on the underlay\n{}",
            self.clear,
            self.offenders.join("\n")
        );
        Ok(())
    }
}

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    marker: FrameSender,
    marked: AtomicU64,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the capturing thread and its owner share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
    marker_seen: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    report: Report,
    /// The number in the last marker frame.
    marker: u64,
}

impl Lab {
    /// Starts to listen to the whole underlay for packets of this lab's pods.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.underlay, &["underlay"], self.rules())
    }

    /// [`Lab::capture`], where the attacker is a client outside of the cluster: what it sends and gets is its own
    /// affair. With `hosts`, whatever nodes send each other is clear text, too, but for WireGuard.
    pub fn capture_inside(&self, hosts: bool) -> Result<Capture> {
        let nodes = if hosts { self.plan.node_cidrs() } else { Vec::new() };
        let outside = vec![self.attacker.mac("eth0")?];
        Capture::start(&self.underlay, &["underlay"], Rules { nodes, outside, ..self.rules() })
    }

    /// [`Lab::capture`] on another machine that packets pass: a router with links of its own.
    pub fn capture_at(&self, router: &Netns) -> Result<Capture> {
        Capture::start(router, &[], self.rules())
    }

    fn rules(&self) -> Rules {
        let pods = self.plan.cluster_cidrs();
        Rules { pods, mesh_ports: MESH_PORTS, canary: CANARY, nodes: Vec::new(), outside: Vec::new() }
    }
}

impl Capture {
    /// Starts to listen in `netns` to all interfaces but `lo` and those of `except` (the bridge itself, which
    /// would show again what its ports showed).
    pub fn start(netns: &Netns, except: &[&str], rules: Rules) -> Result<Self> {
        let (ring, marker, loopback, except) = netns.run(|| {
            let index = |name: &str| if_nametoindex(name).map(|index| index as i32);
            let except = except.iter().map(|name| index(name)).collect::<Result<Vec<_>, _>>()?;
            anyhow::Ok((Ring::open()?, FrameSender::open("lo")?, index("lo")?, except))
        })??;
        let shared = Arc::<Shared>::default();
        let mut listener = Listener {
            shared: shared.clone(),
            rules,
            loopback,
            except,
            started: SystemTime::now().duration_since(UNIX_EPOCH)?,
        };
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || listener.run(ring))
            .context("starting a thread")?;
        Ok(Self { shared, marker, marked: AtomicU64::new(0), thread: Some(thread) })
    }

    /// What was seen since the start or the last [`Capture::reset`], up to this call.
    pub fn report(&self) -> Result<Report> {
        self.synchronise(|seen| seen.report.clone())
    }

    /// Forgets what was seen so far, and returns it.
    pub fn reset(&self) -> Result<Report> {
        self.synchronise(|seen| std::mem::take(&mut seen.report))
    }

    /// Sends a marker through the ring, waits until the thread has met it, and so all that arrived before
    /// it, and then takes a look.
    fn synchronise<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> Result<T> {
        let number = self.marked.fetch_add(1, Ordering::Relaxed) + 1;
        self.marker.send(&[&[0; 12], &MARKER_TYPE[..], &number.to_be_bytes(), &[0; 40]].concat())?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut seen = self.shared.seen.lock().expect("the capture does not panic");
        while seen.marker < number {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                bail!("the capture has stalled: the marker of this moment did not come back to it");
            }
            seen = self
                .shared
                .marker_seen
                .wait_timeout(seen, left.min(Duration::from_millis(200)))
                .expect("the capture does not panic")
                .0;
        }
        Ok(look(&mut seen))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its error was reported by the last call that needed it.
            let _ = thread.join();
        }
    }
}

/// The capturing thread.
struct Listener {
    shared: Arc<Shared>,
    rules: Rules,
    loopback: i32,
    except: Vec<i32>,
    started: Duration,
}

impl Listener {
    fn run(&mut self, mut ring: Ring) -> Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            // One lock for a block of frames, not for each.
            let shared = self.shared.clone();
            let mut batch = Vec::new();
            ring.read_block(Duration::from_millis(100), |frame| {
                if let Some(event) = self.look_at(&frame) {
                    batch.push(event);
                }
            })?;
            let mut seen = shared.seen.lock().expect("the owner does not panic");
            for event in batch {
                seen.count(event, self.started);
            }
            seen.report.dropped += ring.dropped()?;
            shared.marker_seen.notify_all();
        }
        Ok(())
    }

    fn look_at(&self, frame: &Frame) -> Option<Event> {
        if frame.interface == self.loopback {
            let number =
                frame.bytes.strip_prefix(&[0; 12]).and_then(|rest| rest.strip_prefix(&MARKER_TYPE))?;
            return Some(Event::Marker(u64::from_be_bytes(*number.first_chunk()?)));
        }
        let counts = !self.except.contains(&frame.interface);
        let Frame { time, length, bytes, .. } = *frame;
        counts.then(|| Event::Frame { time, length, class: self.rules.classify(bytes) })
    }
}

enum Event {
    Marker(u64),
    Frame { time: Duration, length: u32, class: Class },
}

impl Seen {
    fn count(&mut self, event: Event, started: Duration) {
        let report = &mut self.report;
        let (time, length, class) = match event {
            Event::Marker(number) => {
                self.marker = self.marker.max(number);
                return;
            }
            Event::Frame { time, length, class } => (time, length, class),
        };
        match class {
            Class::WireGuard(kind) => {
                report.wireguard += 1;
                report.wireguard_data += u64::from(kind == 4);
                report.largest = report.largest.max(length);
            }
            Class::Control => report.control += 1,
            Class::Fragment => report.fragments += 1,
            Class::Other => report.other += 1,
            Class::Outside => report.outside += 1,
            Class::Clear(offender) => {
                report.clear += 1;
                if report.offenders.len() < OFFENDERS_KEPT {
                    let at = time.saturating_sub(started).as_secs_f64();
                    report.offenders.push(format!("  at {at:.6} s: {offender}"));
                }
            }
        }
    }
}
