//! Many flows at once: datagrams of many source ports to one destination, each with a number, of which every one
//! that does not arrive is known.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::capture::CANARY;
use crate::netns::Netns;
use crate::wait;

/// Where the datagrams go.
pub const PORT: u16 = 7000;

/// The first source port of [`once`].
const FIRST: u16 = 30_000;

/// Between two datagrams of [`Flows`], [`wait::patient`]: the socket that receives holds a quarter of a second of them
/// while its program waits for a processor.
const BEAT: Duration = Duration::from_millis(2);

/// How long a datagram may be on its way, [`wait::patient`].
const TRAVEL: Duration = Duration::from_secs(2);

/// Sends one datagram of each of `flows` flows; fails unless all of them arrive.
pub fn once(from: &Netns, to: &Netns, ip: IpAddr, flows: u16) -> Result<()> {
    let receiver = Receiver::start(to, ip)?;
    let sent = from.run(|| {
        for number in 0..flows {
            let socket = UdpSocket::bind((any(ip), FIRST + number))?;
            socket.send_to(&payload(number.into()), (ip, PORT))?;
            // The receiver has to keep up.
            if number % 32 == 31 {
                std::thread::sleep(wait::patient(BEAT));
            }
        }
        std::io::Result::Ok(())
    })?;
    sent.with_context(|| format!("sending from {} to {ip}", from.name()))?;
    let arrived = receiver.stop(u32::from(flows) - 1)?;
    let missing = u32::from(flows) - arrived.len() as u32;
    ensure!(missing == 0, "{missing} of {flows} flows from {} did not arrive at {ip}", from.name());
    Ok(())
}

/// Flows that go on, one datagram of each in turn, until they are stopped.
#[derive(Debug)]
pub struct Flows {
    sender: JoinHandle<std::io::Result<u32>>,
    receiver: Receiver,
    stop: Arc<AtomicBool>,
}

/// What became of [`Flows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams sent.
    pub sent: u32,
    /// Those that did not arrive.
    pub lost: u32,
}

impl Flows {
    /// Starts flows from so many source ports on.
    pub fn start(from: &Netns, to: &Netns, ip: IpAddr, first_port: u16, flows: u16) -> Result<Self> {
        let receiver = Receiver::start(to, ip)?;
        let bind = || (0..flows).map(|number| UdpSocket::bind((any(ip), first_port + number))).collect();
        let sockets: std::io::Result<Vec<UdpSocket>> = from.run(bind)?;
        let sockets = sockets.with_context(|| format!("opening {flows} sockets in {}", from.name()))?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let sender = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let socket = &sockets[number as usize % sockets.len()];
                socket.send_to(&payload(number), (ip, PORT))?;
                number += 1;
                std::thread::sleep(wait::patient(BEAT));
            }
            Ok(number)
        });
        Ok(Self { sender, receiver, stop })
    }

    /// Stops, and tells what was lost.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic").context("sending a datagram")?;
        ensure!(sent > 0, "nothing was sent");
        let arrived = self.receiver.stop(sent - 1)?;
        Ok(Tally { sent, lost: sent - arrived.len() as u32 })
    }
}

/// Takes datagrams on a thread of its own.
#[derive(Debug)]
struct Receiver {
    thread: JoinHandle<Result<BTreeSet<u32>>>,
    last: Arc<Mutex<Option<(u32, Instant)>>>,
}

impl Receiver {
    fn start(netns: &Netns, ip: IpAddr) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((ip, PORT)))?;
        let socket = socket.with_context(|| format!("listening on {ip} in {}", netns.name()))?;
        socket.set_read_timeout(Some(Duration::from_millis(10)))?;
        let last = Arc::<Mutex<Option<(u32, Instant)>>>::default();
        let told = last.clone();
        let thread = std::thread::spawn(move || {
            let mut arrived = BTreeSet::new();
            let mut buffer = [0; 64];
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let number =
                            buffer[..length].strip_prefix(CANARY).and_then(|rest| rest.try_into().ok());
                        arrived.extend(number.map(u32::from_be_bytes));
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("receiving a datagram"),
                }
                let awaited = *told.lock().expect("nobody panics with the lock");
                if awaited.is_some_and(|(last, deadline)| {
                    arrived.len() as u32 == last + 1 || Instant::now() >= deadline
                }) {
                    return Ok(arrived);
                }
            }
        });
        Ok(Self { thread, last })
    }

    /// Waits until all numbers up to `last` are there, or the time is over for those on their way.
    fn stop(self, last: u32) -> Result<BTreeSet<u32>> {
        let deadline = Instant::now() + wait::patient(TRAVEL);
        *self.last.lock().expect("nobody panics with the lock") = Some((last, deadline));
        self.thread.join().expect("the receiver does not panic")
    }
}

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn payload(number: u32) -> Vec<u8> {
    [&CANARY[..], &number.to_be_bytes()].concat()
}
