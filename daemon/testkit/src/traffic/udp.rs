//! Single datagrams with a name each, to tell which arrived.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::capture::CANARY;
use crate::netns::Netns;

/// The payload of the datagram called `name`.
pub fn payload(name: &str) -> Vec<u8> {
    [&CANARY[..], name.as_bytes()].concat()
}

/// Sends the datagram called `name` from inside `from`.
pub fn send(from: &Netns, to: IpAddr, port: u16, name: &str) -> Result<()> {
    from.run(|| {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.send_to(&payload(name), (to, port))
    })?
    .with_context(|| format!("sending a datagram from {} to {to}", from.name()))?;
    Ok(())
}

/// A socket that takes datagrams from anybody, and remembers their names.
#[derive(Debug)]
pub struct Receiver {
    socket: UdpSocket,
    names: Vec<String>,
}

impl Receiver {
    /// Listens inside `netns` on its address `ip`.
    pub fn listen(netns: &Netns, ip: IpAddr, port: u16) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((ip, port)))?;
        let socket =
            socket.with_context(|| format!("listening on UDP {ip} port {port} in {}", netns.name()))?;
        Ok(Self { socket, names: Vec::new() })
    }

    /// Waits for the datagram called `name`, up to `limit`.
    pub fn expect(&mut self, name: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.has(name) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("datagram {name:?} did not arrive in {limit:?}; arrived: {:?}", self.names);
            }
            self.receive(left)?;
        }
        Ok(())
    }

    /// Whether the datagram called `name` has been received. To be asked after [`Receiver::expect`] of one
    /// that was sent later: its arrival proves that the time of the first has come and gone.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn receive(&mut self, limit: Duration) -> Result<()> {
        let mut buffer = [0; 2048];
        self.socket.set_read_timeout(Some(limit))?;
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(name) = buffer[..length].strip_prefix(CANARY) {
                    self.names.push(String::from_utf8_lossy(name).into_owned());
                }
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("receiving a datagram"),
        }
    }
}
