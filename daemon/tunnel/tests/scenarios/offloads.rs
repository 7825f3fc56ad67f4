//! Super-packets change nothing but the speed.

use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use rand_core::{OsRng, RngCore};
use warren_testkit::netns::Netns;
use warren_testkit::wait;
use warren_tunnel::uapi::PeerUpdate;

use super::site::{End, Family, INTERFACE, ONE, SOON, Site};

/// Of the interface.
pub const MTU: u64 = 1420;
/// Bytes that go through a tunnel, of which no piece is like another.
const BYTES: usize = 64 << 20;
/// No single step of a transfer takes longer, however lossy the way.
const PATIENCE: Duration = Duration::from_secs(30);

/// They are in use: without them, packets would be of the MTU's size.
pub fn used() -> Result<()> {
    for underlay in [Family::V4, Family::V6] {
        let site = Site::joined(ONE, ONE, underlay)?;
        site.ping()?;
        // 45 datagrams for a packet of the MTU, 1420, are as many bytes as one send takes.
        wait::until("the limit of segments", SOON, || {
            let link = site.left.netns.sh(&format!("ip -d link show {INTERFACE}"))?;
            ensure!(link.contains("gso_max_segs 45 "), "{link}");
            Ok(())
        })?;
        for (address, name) in site.right.inner().into_iter().zip(["IPv4", "IPv6"]) {
            let before = [received(&site.right)?, sent(&site.left, INTERFACE)?];
            transfer(&site.left, &site.right, address, BYTES / 2)?;
            let after = [received(&site.right)?, sent(&site.left, INTERFACE)?];
            let [to, from] = [0, 1].map(|side| size(before[side], after[side]));
            println!("{name} over {underlay:?}: bytes per packet from the TUN {from}, to the TUN {to}");
            ensure!(from.min(to) > 8 * MTU, "hardly any super-packets: {from}, {to}");
        }
    }
    Ok(())
}

/// Super-packets of UDP, where the kernel has them for a TUN, and single datagrams give the same bytes.
pub fn udp_segmentation() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let Site { left, right } = &site;
    let has = offers(left, INTERFACE, "tx-udp-segmentation")?;
    println!("the kernel gives super-packets of UDP to a TUN: {has}");
    for on in [true, false] {
        if !on && has {
            left.netns.sh(&format!("ethtool -K {INTERFACE} tx-udp-segmentation off"))?;
        }
        for address in right.inner() {
            let before = sent(left, INTERFACE)?;
            let lost = datagrams(left, right, address, true).with_context(|| format!("to {address}"))?;
            ensure!(lost == 0, "{lost} datagrams to {address} were lost");
            let size = size(before, sent(left, INTERFACE)?);
            println!("to {address}, segmentation by the tunnel {}: {size} bytes per packet", on && has);
            ensure!((size > 8 * MTU) == (on && has), "{size} bytes per packet from the TUN");
        }
    }
    Ok(())
}

/// An interface of VXLAN in the tunnel.
const VXLAN: &str = "vx0";
/// The limit of the tunnel's own interface (`gso_max_segs`) at MTU 1420: what exceeds it is split by the kernel.
const SEGMENTS: usize = 45;

/// TCP in VXLAN in the tunnel: the kernel leaves super-packets in it whole, if it has that for a TUN (Linux 6.17), and does
/// so for IPv4 and IPv6 in each other.
pub fn vxlan() -> Result<()> {
    const PLAIN: &str = "tx-udp_tnl-segmentation";
    const CHECKSUM: &str = "tx-udp_tnl-csum-segmentation";
    for (outer, checksum, feature) in
        [(0, "udpcsum", CHECKSUM), (0, "noudpcsum", PLAIN), (1, "noudp6zerocsumtx", CHECKSUM)]
    {
        let site = Site::joined(ONE, ONE, Family::V4)?;
        site.ping()?;
        let Site { left, right } = &site;
        let whole = offers(left, INTERFACE, feature)?;
        for (end, other, n) in [(left, right, 1), (right, left, 2)] {
            let (local, remote) = (end.inner()[outer], other.inner()[outer]);
            end.netns.ip(&format!(
                "link add {VXLAN} type vxlan id 7 dstport 4789 local {local} remote {remote} dev {INTERFACE} {checksum}\n\
                 address add 10.77.0.{n}/24 dev {VXLAN}\n\
                 address add fd77::{n}/64 dev {VXLAN} nodad\n\
                 link set {VXLAN} gso_max_segs {SEGMENTS} up"
            ))?;
        }
        for address in ["10.77.0.2", "fd77::2"] {
            let what = format!("{address} in VXLAN over {}, {checksum}", right.inner()[outer]);
            let address = address.parse()?;
            let before = [received(right)?, sent(left, INTERFACE)?];
            transfer(left, right, address, BYTES / 2).with_context(|| what.clone())?;
            let after = [received(right)?, sent(left, INTERFACE)?];
            let [to, from] = [0, 1].map(|side| size(before[side], after[side]));
            println!("{what}, {feature} {whole}: bytes per packet from the TUN {from}, to the TUN {to}");
            ensure!(from > 8 * MTU || !whole, "hardly any super-packets: {from}");
        }
    }
    Ok(())
}

/// Datagrams longer than the link are refused in runs, and sent one by one for the kernel to fragment.
pub fn larger_than_the_link() -> Result<()> {
    for underlay in [Family::V4, Family::V6] {
        let site = Site::joined(ONE, ONE, underlay)?;
        for end in [&site.left, &site.right] {
            end.netns.ip(&format!("link set {INTERFACE} mtu 9000"))?;
        }
        site.ping()?;
        for address in site.right.inner() {
            transfer(&site.left, &site.right, address, BYTES / 16)
                .with_context(|| format!("over {underlay:?}, to {address}"))?;
        }
        let state = site.left.get()?;
        let refused = state.fallbacks.get("run_refused").copied();
        ensure!(refused > Some(0), "not counted: {state:?}");
        let again = state.fallbacks.get("source_refused").copied();
        ensure!(again == Some(0), "{again:?} were sent without their source address");
    }
    Ok(())
}

/// Whether a feature of an interface, as ethtool(8) calls it, is switched on.
pub fn has(end: &End, interface: &str, feature: &str) -> Result<bool> {
    Ok(state(end, interface, feature)?.starts_with("on"))
}

/// Whether the kernel has a feature for such an interface, which the program may have asked for or not.
fn offers(end: &End, interface: &str, feature: &str) -> Result<bool> {
    Ok(state(end, interface, feature)? != "off [fixed]")
}

fn state(end: &End, interface: &str, feature: &str) -> Result<String> {
    let features = end.netns.sh(&format!("ethtool -k {interface}"))?;
    let state = |line: &str| Some(line.trim().strip_prefix(feature)?.strip_prefix(": ")?.to_owned());
    features.lines().find_map(state).with_context(|| format!("{interface} knows no {feature}"))
}

/// Bytes and packets.
pub type Traffic = (u64, u64);

/// What the tunnel interface gave to the kernel.
fn received(end: &End) -> Result<Traffic> {
    Ok((statistic(end, INTERFACE, "rx_bytes")?, statistic(end, INTERFACE, "rx_packets")?))
}

/// What an interface was given.
pub fn sent(end: &End, interface: &str) -> Result<Traffic> {
    Ok((statistic(end, interface, "tx_bytes")?, statistic(end, interface, "tx_packets")?))
}

/// Bytes per packet of what came in between.
pub fn size(before: Traffic, after: Traffic) -> u64 {
    (after.0 - before.0) / (after.1 - before.1).max(1)
}

fn statistic(end: &End, interface: &str, name: &str) -> Result<u64> {
    let text = end.netns.sh(&format!("cat /sys/class/net/{interface}/statistics/{name}"))?;
    text.trim().parse().with_context(|| format!("{name} is {text:?}"))
}

/// Sends datagrams of chance, 40 at a time, and compares each with what arrives. Given to the kernel as one run, or one by
/// one. Returns how many were lost.
pub fn datagrams(from: &End, to: &End, address: IpAddr, as_run: bool) -> Result<usize> {
    const SEGMENT: usize = 1000;
    const RUN: usize = 40;
    const ROUNDS: usize = 50;
    let receiver = to.netns.run(|| UdpSocket::bind((address, 0)))??;
    receiver.set_read_timeout(Some(SOON))?;
    let source = from.inner()[usize::from(address.is_ipv6())];
    let sender = from.netns.run(|| UdpSocket::bind((source, 0)))??;
    sender.connect(receiver.local_addr()?)?;
    if as_run {
        setsockopt(&sender, sockopt::UdpGsoSegment, &(SEGMENT as i32))?;
    }
    let mut run = vec![0; RUN * SEGMENT - 7];
    let mut datagram = vec![0; 2 * SEGMENT];
    let mut lost = 0;
    for round in 0..ROUNDS {
        OsRng.fill_bytes(&mut run);
        for piece in run.chunks(if as_run { run.len() } else { SEGMENT }) {
            sender.send(piece).context("sending")?;
        }
        let mut expected = run.chunks(SEGMENT);
        while expected.len() > 0 {
            let Ok(len) = receiver.recv(&mut datagram) else { break };
            // In their order; what is passed over did not come.
            let passed = expected.position(|expected| *expected == datagram[..len]);
            lost += passed.with_context(|| format!("round {round}: a datagram is another, or too late"))?;
        }
        lost += expected.len();
    }
    Ok(lost)
}

/// Sends bytes of chance and compares their hash on both ends.
pub fn transfer(from: &End, to: &End, address: IpAddr, bytes: usize) -> Result<()> {
    let listener = to.netns.run(|| TcpListener::bind((address, 0)))?.context("listening")?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<_> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (mut hasher, mut buffer, mut sum) = (DefaultHasher::new(), vec![0; 1 << 16], 0);
            loop {
                let read = stream.read(&mut buffer).context("receiving")?;
                if read == 0 {
                    return Ok((sum, hasher.finish()));
                }
                hasher.write(&buffer[..read]);
                sum += read;
            }
        });
        let sent = from.netns.run(|| send(target, bytes))?;
        let received = receiving.join().expect("the receiver does not panic")?;
        ensure!(received == (bytes, sent?), "other bytes arrived than were sent");
        Ok(())
    })
}

fn send(target: SocketAddr, bytes: usize) -> Result<u64> {
    let mut stream = TcpStream::connect_timeout(&target, SOON).context("connecting")?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut hasher, mut left) = (DefaultHasher::new(), bytes);
    let mut state = OsRng.next_u64() | 1;
    while left > 0 {
        let mut piece = vec![0; left.min(1 << 16)];
        for word in piece.chunks_mut(8) {
            // Xorshift (Marsaglia 2003): no two pieces are alike.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes()[..word.len()]);
        }
        // The hash is of the bytes, not of the pieces in which they come.
        hasher.write(&piece);
        stream.write_all(&piece).context("sending")?;
        left -= piece.len();
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hasher.finish())
}

pub fn lossy_relay() -> Result<()> {
    let site = Site::new(ONE, ONE)?;
    let Site { left, right } = &site;
    let relay = Relay::bind(&left.netns, right.endpoint(Family::V4))?;
    right.set_peer(right.peer_update(left, None))?;
    let towards = PeerUpdate { endpoint: Some(relay.address), ..left.peer_update(right, None) };
    left.set_peer(towards)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let relaying = scope.spawn(|| relay.run(&stop));
        let start = Instant::now();
        let result = left
            .ping(right)
            .and_then(|()| {
                relay.unkind.store(true, Ordering::Relaxed);
                transfer(left, right, right.inner()[0], BYTES)
            })
            .and_then(|()| transfer(right, left, left.inner()[1], BYTES / 4));
        stop.store(true, Ordering::Relaxed);
        relaying.join().expect("the relay does not panic")?;
        let counts = [&relay.passed, &relay.lost, &relay.twice, &relay.late]
            .map(|count| count.load(Ordering::Relaxed));
        let [passed, lost, twice, late] = counts;
        println!("{passed} datagrams, {lost} lost, {twice} twice, {late} late, in {:?}", start.elapsed());
        ensure!(counts.iter().all(|count| *count > 100), "the relay was too kind");
        result
    })
}

/// Stands between two ends, and loses, doubles and holds back datagrams.
struct Relay {
    socket: UdpSocket,
    address: SocketAddr,
    target: SocketAddr,
    unkind: AtomicBool,
    passed: AtomicU64,
    lost: AtomicU64,
    twice: AtomicU64,
    late: AtomicU64,
}

impl Relay {
    /// On the machine of one end, towards the other's endpoint.
    fn bind(netns: &Netns, target: SocketAddr) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
        let address = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), socket.local_addr()?.port());
        let [passed, lost, twice, late] = [const { AtomicU64::new(0) }; 4];
        Ok(Self { socket, address, target, unkind: AtomicBool::new(false), passed, lost, twice, late })
    }

    fn run(&self, stop: &AtomicBool) -> Result<()> {
        let (mut client, mut held) = (None, Vec::<(Vec<u8>, SocketAddr, u32)>::new());
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = self.socket.recv_from(&mut buffer) else {
                held.drain(..).for_each(|(bytes, to, _)| self.pass(&bytes, to));
                continue;
            };
            if from != self.target {
                client = Some(from);
            }
            let Some(to) = (if from == self.target { client } else { Some(self.target) }) else { continue };
            let chance = if self.unkind.load(Ordering::Relaxed) { OsRng.next_u32() % 1000 } else { 999 };
            match chance {
                0..5 => drop(self.lost.fetch_add(1, Ordering::Relaxed)),
                5..10 => {
                    self.twice.fetch_add(1, Ordering::Relaxed);
                    self.pass(&buffer[..len], to);
                    self.pass(&buffer[..len], to);
                }
                10..20 => {
                    self.late.fetch_add(1, Ordering::Relaxed);
                    held.push((buffer[..len].to_vec(), to, OsRng.next_u32() % 30));
                }
                _ => self.pass(&buffer[..len], to),
            }
            held.iter_mut().for_each(|(_, _, turns)| *turns = turns.saturating_sub(1));
            held.extract_if(.., |(_, _, turns)| *turns == 0).for_each(|(bytes, to, _)| self.pass(&bytes, to));
        }
        Ok(())
    }

    fn pass(&self, bytes: &[u8], to: SocketAddr) {
        self.passed.fetch_add(1, Ordering::Relaxed);
        // What the kernel does not take is one more that is lost.
        let _ = self.socket.send_to(bytes, to);
    }
}
