//! One TCP connection: can these two pods talk, and does much data come through whole?

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::capture::CANARY;
use crate::netns::Netns;

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
