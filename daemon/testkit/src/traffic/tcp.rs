//! One TCP connection: can these two pods talk, does much data come through whole, and which way does it go?

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::capture::CANARY;
use crate::netns::Netns;
use crate::wait;

/// Between two pieces of [`Chat`], [`wait::patient`].
const BEAT: Duration = Duration::from_millis(5);

/// How long one step of a [`Chat`] may take: a lost segment is sent again after 0.2 s, 0.4 s and so on.
const STEP: Duration = Duration::from_secs(10);

/// A connection between two ports that goes on, a few bytes at a time, until it is stopped.
#[derive(Debug)]
pub struct Chat {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<usize>>,
    server: JoinHandle<Result<usize>>,
}

impl Chat {
    /// Connects from `source` to `port` at `ip`, an address of `to`; returns when that is done.
    pub fn start(from: &Netns, source: u16, to: &Netns, ip: IpAddr, port: u16) -> Result<Self> {
        let listener = to.run(|| TcpListener::bind((ip, port)))?;
        let listener = listener.with_context(|| format!("listening on {ip} in {}", to.name()))?;
        let mut stream = from.run(|| connect_from(source, (ip, port).into()))??;
        let (mut other, _) = listener.accept().context("accepting")?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let client = std::thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                stream.write_all(CANARY).context("writing")?;
                sent += CANARY.len();
                std::thread::sleep(wait::patient(BEAT));
            }
            stream.shutdown(Shutdown::Write)?;
            // Until the other end has taken all of it.
            stream.read_to_end(&mut Vec::new()).context("waiting for the end")?;
            Ok(sent)
        });
        let server = std::thread::spawn(move || {
            other.set_read_timeout(Some(wait::patient(STEP)))?;
            let mut received = Vec::new();
            other.read_to_end(&mut received).context("reading")?;
            Ok(received.len())
        });
        Ok(Self { stop, client, server })
    }

    /// Stops; fails if a byte was lost.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.client.join().expect("the client does not panic")?;
        let received = self.server.join().expect("the server does not panic")?;
        ensure!(sent > 0 && sent == received, "of {sent} bytes, {received} arrived");
        Ok(())
    }
}

/// The standard library chooses the port itself.
fn connect_from(source: u16, to: SocketAddr) -> Result<TcpStream> {
    let (family, any): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // A connection of before may not have been forgotten yet.
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, source)))?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(wait::patient(STEP)))?;
    stream.set_read_timeout(Some(wait::patient(STEP)))?;
    socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("connecting to {to} from port {source}"))?;
    Ok(stream)
}

/// Sends `bytes` from `client` to `to`, an address of `server`, and has the server confirm them; returns the
/// time it took. `limit` is for each single step: connecting, or waiting for a next piece.
pub fn transfer(
    server: &Netns,
    to: IpAddr,
    client: &Netns,
    bytes: usize,
    limit: Duration,
) -> Result<Duration> {
    let listener =
        server.run(|| TcpListener::bind((to, 0)))?.with_context(|| format!("listening on {to}"))?;
    let address = listener.local_addr()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&listener, limit));
        let sent = client.run(|| send(address, bytes, limit))?;
        if sent.is_err() {
            // Nobody else will: `accept` has no time limit.
            let _ = server.run(|| TcpStream::connect(address));
        }
        let received = receiving.join().expect("the receiving thread does not panic");
        sent.with_context(|| format!("sending {bytes} bytes from {} to {address}", client.name()))?;
        let received = received.with_context(|| format!("receiving at {address} in {}", server.name()))?;
        ensure!(received == bytes, "of {bytes} bytes sent to {address}, {received} arrived");
        Ok(start.elapsed())
    })
}

fn send(to: SocketAddr, bytes: usize, limit: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, limit).context("connecting")?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    let text: Vec<u8> = CANARY.iter().copied().cycle().take(bytes).collect();
    stream.write_all(&text).context("writing")?;
    stream.shutdown(Shutdown::Write)?;
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed).context("waiting for the confirmation")?;
    ensure!(u64::from_be_bytes(confirmed) == bytes as u64, "the other end confirmed another amount");
    Ok(())
}

fn receive(listener: &TcpListener, limit: Duration) -> Result<usize> {
    let (mut stream, _) = listener.accept().context("accepting")?;
    stream.set_read_timeout(Some(limit))?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).context("reading")?;
    ensure!(
        received.iter().eq(CANARY.iter().cycle().take(received.len())),
        "the bytes were changed on the way"
    );
    stream.write_all(&(received.len() as u64).to_be_bytes()).context("confirming")?;
    Ok(received.len())
}
