//! One conversation, client to server and back, through whatever stands between: who does the server think it
//! talks to?

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_testkit::capture::CANARY;
use warren_testkit::netns::Netns;
use warren_testkit::wait;

/// How long each step may take. Nothing here has to be retransmitted.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to try what is not to succeed.
pub const VAIN: Duration = Duration::from_millis(300);

/// Several segments in each direction.
const BYTES: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

pub const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Somebody who answers.
pub struct Server<'a> {
    pub netns: &'a Netns,
    /// Where it listens.
    pub at: SocketAddr,
}

/// The client, inside `from`, says something to `to`, and the server says it back; returns the client's address as the
/// server sees it.
pub fn exchange(protocol: Protocol, from: &Netns, to: SocketAddr, server: &Server<'_>) -> Result<IpAddr> {
    exchange_within(wait::patient(PATIENCE), protocol, from, to, server).with_context(|| {
        format!(
            "{protocol:?} from {} to {to}, to be answered by {} at {}",
            from.name(),
            server.netns.name(),
            server.at
        )
    })
}

/// Fails if the client has any success.
pub fn refused(protocol: Protocol, from: &Netns, to: SocketAddr, server: &Server<'_>) -> Result<()> {
    match exchange_within(wait::patient(VAIN), protocol, from, to, server) {
        Ok(_) => bail!("{protocol:?} from {} to {to} was answered by {}", from.name(), server.netns.name()),
        Err(_) => Ok(()),
    }
}

fn exchange_within(
    patience: Duration,
    protocol: Protocol,
    from: &Netns,
    to: SocketAddr,
    server: &Server<'_>,
) -> Result<IpAddr> {
    match protocol {
        Protocol::Tcp => tcp(patience, from, to, server),
        Protocol::Udp => udp(patience, from, to, server),
    }
}

fn tcp(patience: Duration, from: &Netns, to: SocketAddr, server: &Server<'_>) -> Result<IpAddr> {
    let listener = server.netns.run(|| TcpListener::bind(server.at))?.context("listening")?;
    listener.set_nonblocking(true)?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let deadline = Instant::now() + patience;
            let (mut stream, peer) = loop {
                match listener.accept() {
                    Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                        sleep(Duration::from_millis(1));
                    }
                    result => break result.context("accepting")?,
                }
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(patience))?;
            let mut bytes = vec![0; BYTES];
            stream.read_exact(&mut bytes).context("the server, reading")?;
            stream.write_all(&bytes).context("the server, writing")?;
            anyhow::Ok(peer.ip())
        });
        let asked = from.run(|| {
            let mut stream = TcpStream::connect_timeout(&to, patience).context("connecting")?;
            stream.set_read_timeout(Some(patience))?;
            let said = said();
            stream.write_all(&said).context("the client, writing")?;
            let mut heard = vec![0; BYTES];
            stream.read_exact(&mut heard).context("the client, reading")?;
            ensure!(heard == said, "the answer was changed on the way");
            Ok(())
        })?;
        let peer = answering.join().expect("the answering thread does not panic");
        asked?;
        peer
    })
}

fn udp(patience: Duration, from: &Netns, to: SocketAddr, server: &Server<'_>) -> Result<IpAddr> {
    let socket = server.netns.run(|| UdpSocket::bind(server.at))?.context("listening")?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let (asked, mut peers) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| from.run(|| ask(patience, to))?);
        let mut peers = Vec::new();
        let mut buffer = [0; 2048];
        while !asking.is_finished() {
            if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..length], peer).context("the server, sending")?;
                peers.push(peer.ip());
            }
        }
        anyhow::Ok((asking.join().expect("the asking thread does not panic"), peers))
    })?;
    asked.with_context(|| format!("the server heard from {peers:?}"))?;
    peers.pop().context("answered by somebody else")
}

/// Asks like a resolver: again for as long as nobody answers.
fn ask(patience: Duration, to: SocketAddr) -> Result<()> {
    const TRIES: u32 = 3;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Connected, so that an answer from elsewhere is none.
    socket.connect(to).context("connecting")?;
    socket.set_read_timeout(Some(patience / TRIES))?;
    let said = &said()[..1000];
    let mut buffer = [0; 2048];
    let mut heard = Ok(0);
    for _ in 0..TRIES {
        socket.send(said).context("the client, sending")?;
        heard = socket.recv(&mut buffer);
        if heard.is_ok() {
            break;
        }
    }
    let length = heard.context("the client, receiving")?;
    ensure!(&buffer[..length] == said, "the answer was changed on the way");
    Ok(())
}

fn said() -> Vec<u8> {
    CANARY.iter().copied().cycle().take(BYTES).collect()
}
