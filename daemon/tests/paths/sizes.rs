//! Packets of chosen sizes between two pods: each arrives, or its sender is told how large it may be.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use warren_testkit::capture::CANARY;
use warren_testkit::lab::Pod;
use warren_testkit::netns::Netns;
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

/// The bytes of one TCP transfer, divided by [`wait::patience`].
const STREAM: usize = 4 << 20;

/// The time between pings that are to learn, and so what the last one has for its answer: where others were answered, ping
/// waits no longer than this or two round trips.
const BEAT: Duration = Duration::from_millis(200);

/// How long to wait for the answer that is not to come.
const VAIN: Duration = Duration::from_millis(300);

/// How long a sender may take to be told that a datagram is too large; what was not told arrives before.
const TELLING: Duration = Duration::from_millis(100);

/// A transfer may not stand still for longer, [`wait::patient`].
pub const STALL: Duration = Duration::from_secs(2);

/// All checks, over every address family the pods have; `mtu` is what their packets may have.
pub fn all(from: &Pod, to: &Pod, mtu: u32) -> Result<()> {
    for ip in &to.ips {
        exactly(&from.netns, *ip, mtu)
            .and_then(|()| one_more(&from.netns, *ip, mtu))
            .and_then(|()| refused(&from.netns, *ip, mtu))
            .and_then(|()| in_pieces(&from.netns, &to.netns, *ip, mtu))
            .and_then(|()| stream(&from.netns, &to.netns, *ip, mtu))
            .with_context(|| format!("{} to {} ({ip}), {mtu} bytes", from.name, to.name))?;
    }
    Ok(())
}

fn headers(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 28 } else { 48 }
}

/// Forgets what the sender has learnt of any path to addresses like this.
fn forget(from: &Netns, to: IpAddr) -> Result<()> {
    let family = if to.is_ipv4() { "-4" } else { "-6" };
    from.sh(&format!("ip {family} route flush cache")).map(drop)
}

/// A packet as large as the route allows passes whole.
pub fn exactly(from: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    forget(from, to)?;
    let size = (mtu - headers(to)) as u16;
    let ping = Ping { size, dont_fragment: true, ..Ping::of(3) };
    ping.run(from, to)?.complete().context("as large as may be")
}

/// A packet as large as the route allows does not arrive, while small ones do, before and after.
pub fn swallowed(from: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    Ping::of(3).run(from, to)?.complete().context("small, before")?;
    forget(from, to)?;
    let size = (mtu - headers(to)) as u16;
    let large = Ping { size, dont_fragment: true, patience: VAIN, ..Ping::of(1) };
    let answers = large.run(from, to)?;
    ensure!(answers.received == 0, "a large packet passed");
    Ping::of(3).run(from, to)?.complete().context("small, after")
}

/// Has those who answer with as much learn that the way back is narrower, by what is padded.
pub fn teach(from: &Pod, to: &Pod, mtu: u32) -> Result<()> {
    for ip in &to.ips {
        forget(&from.netns, *ip)?;
        let size = (mtu - headers(*ip)) as u16;
        let interval = wait::patient(BEAT);
        // Over IPv6, the first answers are lost to it.
        Ping { count: 3, size, dont_fragment: true, interval, ..Ping::default() }.run(&from.netns, *ip)?;
    }
    Ok(())
}

/// A packet of a byte more comes back with the size that would have passed.
fn one_more(from: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    forget(from, to)?;
    let size = (mtu + 1 - headers(to)).to_string();
    let mut command = from.command("ping");
    command.args(["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, &to.to_string()]);
    let output = command.output().context("starting ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told = text.contains(&format!("mtu = {mtu}")) || text.contains(&format!("mtu={mtu}"));
    ensure!(told && text.contains(" 0 received"), "a byte more than may be: {text}");
    Ok(())
}

/// A socket of the pod for datagrams to `to`, whose packets may be fragmented or not.
fn datagrams(from: &Netns, to: SocketAddr, whole: bool) -> Result<UdpSocket> {
    let open = || {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        if to.is_ipv4() {
            let how = if whole { Ipv4PathMtuDiscovery::DO } else { Ipv4PathMtuDiscovery::DONT };
            set_ip_mtu_discover(&socket, how)?;
        } else {
            let how = if whole { Ipv6PathMtuDiscovery::DO } else { Ipv6PathMtuDiscovery::DONT };
            set_ipv6_mtu_discover(&socket, how)?;
        }
        socket.connect(to)?;
        anyhow::Ok(socket)
    };
    from.run(open)?
}

/// A datagram that must not be fragmented and is too large is refused to its sender, who is told the size.
fn refused(from: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    forget(from, to)?;
    let socket = datagrams(from, (to, 9).into(), true)?;
    let payload: Vec<u8> = CANARY.iter().copied().cycle().take((mtu + 1 - headers(to)) as usize).collect();
    wait::until("EMSGSIZE", Duration::from_secs(2), || match socket.send(&payload) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => Ok(()),
        Err(error) => Err(error).context("another error"),
        Ok(_) => bail!("it was sent"),
    })?;
    let told = if to.is_ipv4() { ip_mtu(&socket)? } else { ipv6_mtu(&socket)? };
    ensure!(told == mtu, "the sender of a large datagram was told {told}");
    Ok(())
}

/// Datagrams that are larger than the path, and may be fragmented, arrive whole. Over IPv6 only the sender
/// fragments: the first may be lost while it is told.
pub fn in_pieces(from: &Netns, at: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    forget(from, to)?;
    let receiver = at.run(|| UdpSocket::bind((to, 0)))??;
    let socket = datagrams(from, receiver.local_addr()?, false)?;
    let tries: &[Duration] = if to.is_ipv6() { &[TELLING, TELLING, STALL] } else { &[STALL] };
    let mut before = Vec::new();
    for size in [mtu - headers(to) + 1, mtu + 500, 4000, 20_000] {
        let payload: Vec<u8> = CANARY.iter().copied().cycle().take(size as usize).collect();
        let mut arrived = false;
        for limit in tries {
            socket.send(&payload).with_context(|| format!("a datagram of {size} bytes"))?;
            receiver.set_read_timeout(Some(wait::patient(*limit)))?;
            arrived = receives(&receiver, &payload, &before)?;
            if arrived {
                break;
            }
        }
        ensure!(arrived, "a datagram of {size} bytes did not arrive, {} times", tries.len());
        before.push(payload.len());
    }
    Ok(())
}

/// Whether the datagram arrives; those of the sizes `before` were late, and have been sent again.
fn receives(receiver: &UdpSocket, payload: &[u8], before: &[usize]) -> Result<bool> {
    let mut buffer = vec![0; 65_536];
    loop {
        match receiver.recv(&mut buffer) {
            Ok(length) if before.contains(&length) => {}
            Ok(length) => {
                let size = payload.len();
                ensure!(
                    &buffer[..length] == payload,
                    "a datagram of {size} bytes arrived as {length} others"
                );
                return Ok(true);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("receiving a datagram"),
        }
    }
}

/// Bytes that tell where they belong, so that none can be missing, doubled or out of order.
fn numbered(bytes: usize) -> Vec<u8> {
    let words = (0..bytes as u64 / 16).flat_map(|n| [n.to_be_bytes(), *b"canary! "]);
    words.flatten().collect()
}

/// A stream arrives whole, never stands still, and its segments are as large as `mtu` allows.
pub fn stream(from: &Netns, at: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    stream_within(STALL, from, at, to, mtu)
}

fn stream_within(stall: Duration, from: &Netns, at: &Netns, to: IpAddr, mtu: u32) -> Result<()> {
    forget(from, to)?;
    forget(at, to)?;
    let listener = at.run(|| TcpListener::bind((to, 0)))??;
    let address = listener.local_addr()?;
    let limit = wait::patient(stall);
    let start = Instant::now();
    let segment = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&listener, limit));
        let sent = from.run(|| send(address, limit))?;
        if sent.is_err() {
            // Nobody else will: `accept` has no time limit.
            let _ = at.run(|| TcpStream::connect(address));
        }
        let received = receiving.join().expect("the receiving thread does not panic");
        let segment = sent.context("sending a stream")?;
        received.context("receiving a stream")?;
        anyhow::Ok(segment)
    })?;
    let time = start.elapsed();
    println!("{} MiB over TCP to {to} in {time:?}, {segment} bytes a segment", stream_bytes() >> 20);
    // IP, TCP, and its option for time stamps. The other direction's route may be narrower by what is padded.
    let wanted = mtu - if to.is_ipv4() { 20 } else { 40 } - 20 - 12;
    ensure!((wanted - 15..=wanted).contains(&segment), "segments of {segment} bytes, not {wanted}");
    Ok(())
}

fn stream_bytes() -> usize {
    // Of whole numbers.
    (STREAM as f64 / wait::patience()) as usize / 16 * 16
}

/// Returns the size of the segments.
fn send(to: SocketAddr, limit: Duration) -> Result<u32> {
    let mut stream = TcpStream::connect_timeout(&to, limit).context("connecting")?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(&numbered(stream_bytes())).context("it stands still")?;
    stream.shutdown(Shutdown::Write)?;
    let mut end = [0];
    stream.read_exact(&mut end).context("it stands still at its end")?;
    Ok(getsockopt(&stream, sockopt::TcpMaxSeg)?)
}

fn receive(listener: &TcpListener, limit: Duration) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(limit))?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).context("it stands still")?;
    let bytes = stream_bytes();
    ensure!(received == numbered(bytes), "other bytes arrived, {} of {bytes}", received.len());
    stream.write_all(&[0])?;
    Ok(())
}

/// Where no word of a path's size comes through (firewalls that swallow ICMP are common), TCP passes because its first
/// packets say how large the others may be: in both directions the other end is asked for no more than fits. `stall` is
/// how long it may stand still.
pub fn clamped(from: &Pod, to: &Pod, mtu: u32, stall: Duration) -> Result<()> {
    for (ip, headers) in to.ips.iter().map(|ip| (ip, if ip.is_ipv4() { 40 } else { 60 })) {
        let fitting = mtu - headers;
        for pod in [from, to] {
            pod.netns.nft(&format!(
                "table inet deaf {{\ncounter fits {{ }}\ncounter others {{ }}\nchain input {{\n\
                 type filter hook input priority 0\n\
                 icmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n\
                 tcp flags & syn == syn tcp option maxseg size {fitting} counter name fits accept\n\
                 tcp flags & syn == syn counter name others\n}}\n}}\n"
            ))?;
        }
        stream_within(stall, &from.netns, &to.netns, *ip, mtu)
            .with_context(|| format!("without ICMP, to {ip}"))?;
        for pod in [from, to] {
            let shown = pod.netns.sh("nft list counters table inet deaf")?;
            let counts: Vec<&str> = shown
                .lines()
                .filter(|line| line.trim_start().starts_with("packets"))
                .map(str::trim)
                .collect();
            let [fits, others] = counts[..] else { bail!("nft says {shown}") };
            ensure!(
                !fits.starts_with("packets 0") && others.starts_with("packets 0"),
                "{} was asked for other segments than {fitting} bytes: {fits}, others {others}",
                pod.name
            );
            pod.netns.sh("nft delete table inet deaf")?;
        }
    }
    Ok(())
}
