//! A minute of bad input at every door, while a ping runs through.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use rand_core::{OsRng, RngCore};
use warren_testkit::traffic::ping::Flood;
use warren_tunnel::uapi::{DeviceUpdate, socket_path};

use super::lifecycle::rss_kib;
use super::site::{Family, INTERFACE, ONE, Program, Site};

/// How much resident memory may grow: buffers that are touched for the first time (large datagrams fill
/// slots of 64 KiB, 64 of them per lane), and the allocator's slack. A leak of one byte per datagram would
/// show beyond it.
const MAX_GROWTH_KIB: u64 = 24 * 1024;

/// Lengths of WireGuard messages, at the threshold between being read and being dropped.
const LENGTHS: [usize; 8] = [0, 1, 31, 32, 64, 92, 148, 1500];

pub fn flood() -> Result<()> {
    let seconds = match std::env::var("WARREN_FLOOD_SECONDS") {
        Ok(seconds) => seconds.parse().context("WARREN_FLOOD_SECONDS is no number")?,
        Err(_) => 60,
    };
    let site = Site::joined(ONE, Program::Go, Family::V4)?;
    site.ping()?;
    let pid = site.left.warren_pid()?;
    let ping = Flood::start(&site.left.netns, site.right.inner()[0], Duration::from_millis(10))?;
    let before = rss_kib(pid)?;
    let stop = AtomicBool::new(false);
    let [datagrams, texts] = [const { AtomicU64::new(0) }; 2];
    let start = Instant::now();
    std::thread::scope(|scope| {
        let attacks = [
            scope.spawn(|| site.right.netns.run(|| at_the_port(&site, &stop, &datagrams))?),
            scope.spawn(|| site.left.netns.run(|| at_the_socket(&stop, &texts))?),
        ];
        while start.elapsed() < Duration::from_secs(seconds)
            && !attacks.iter().any(|attack| attack.is_finished())
        {
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        attacks.into_iter().try_for_each(|attack| attack.join().expect("an attack does not panic"))
    })?;
    let lost = ping.lost();
    let answers = ping.stop()?;
    let after = rss_kib(pid).context("it did not survive")?;
    println!(
        "{seconds} s of {} datagrams and {} texts: {answers} (lost meanwhile: {lost}); RSS {before} KiB before, \
         {after} KiB after",
        datagrams.into_inner(),
        texts.into_inner(),
    );
    ensure!(site.left.warren_pid()? == pid, "it is another process now");
    ensure!(after < before + MAX_GROWTH_KIB, "memory grew from {before} to {after} KiB");
    ensure!(answers.received > answers.sent / 2, "the ping did not run through: {answers}");
    site.ping().context("after the flood")?;
    // The configuration is what it was.
    let state = site.left.get()?;
    ensure!(state.peers.len() == 1 && state.listen_port == site.left.port, "{state:?}");
    site.left.set(&DeviceUpdate::default())
}

/// Sends nonsense, and garbled, cut and repeated copies of what really passes on the link.
fn at_the_port(site: &Site, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let target = site.left.endpoint(Family::V4);
    let sender = UdpSocket::bind("0.0.0.0:0")?;
    let ear = Ear::open(target)?;
    let mut heard: Vec<Vec<u8>> = Vec::new();
    let mut noise = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        while let Some(datagram) = ear.hear() {
            if heard.len() < 512 {
                heard.push(datagram);
            } else {
                let at = OsRng.next_u32() as usize % heard.len();
                heard[at] = datagram;
            }
        }
        OsRng.fill_bytes(&mut noise);
        for (round, random) in noise.chunks_exact(8).enumerate() {
            let [a, b, c, d, e, f, g, h] = random.try_into().expect("chunks of 8");
            let length = LENGTHS[usize::from(a) % LENGTHS.len()];
            let bytes =
                match (round % 4, heard.get((usize::from(b) << 8 | usize::from(c)) % heard.len().max(1))) {
                    (0, _) | (_, None) => {
                        let mut bytes = noise[usize::from(d)..][..length.min(1500)].to_vec();
                        if let Some(kind) = bytes.get_mut(..4) {
                            kind.copy_from_slice(&[e % 5, 0, 0, 0]);
                        }
                        bytes
                    }
                    (1, Some(real)) => real[..usize::from(f) % (real.len() + 1)].to_vec(),
                    (2, Some(real)) => {
                        let mut bytes = real.clone();
                        let at = (usize::from(g) << 8 | usize::from(h)) % bytes.len();
                        bytes[at] ^= 1 << (a % 8);
                        bytes
                    }
                    (_, Some(real)) => real.clone(),
                };
            // A full buffer is no reason to stop.
            let _ = sender.send_to(&bytes, target);
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Hears the datagrams for one target that leave by eth0.
struct Ear {
    socket: std::os::fd::OwnedFd,
    target: SocketAddr,
}

impl Ear {
    fn open(target: SocketAddr) -> Result<Self> {
        // SOCK_DGRAM: without the Ethernet header.
        let socket =
            socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 1))?;
        Ok(Self { socket, target })
    }

    fn hear(&self) -> Option<Vec<u8>> {
        let mut packet = [0; 2048];
        for _ in 0..64 {
            let len = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).ok()?;
            // IPv4 without options, UDP, to the target, of the real peer.
            let right = len > 28
                && packet[0] == 0x45
                && packet[9] == 17
                && packet[22..24] == self.target.port().to_be_bytes()
                && packet[20..22] == 51802u16.to_be_bytes();
            if right {
                return Some(packet[28..len].to_vec());
            }
        }
        None
    }
}

/// Writes random text, and requests that are nearly right, to the configuration socket.
fn at_the_socket(stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let path = socket_path(INTERFACE);
    let mut noise = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        OsRng.fill_bytes(&mut noise);
        let text: Vec<u8> = match noise[0] % 5 {
            0 => noise.to_vec(),
            1 => noise.iter().map(|byte| b' ' + byte % 95).collect(),
            2 => b"set=1\n".iter().chain(&noise).copied().collect(),
            3 => {
                let line = match noise[1] % 6 {
                    0 => "private_key=00",
                    1 => "listen_port=65536",
                    2 => "public_key=zz",
                    3 => "allowed_ip=10.0.0.0/8",
                    4 => "fwmark=-1",
                    _ => "replace_peers=maybe",
                };
                format!("set=1\n{line}\n\n").into_bytes()
            }
            _ => b"get=1\n".iter().chain(&noise).copied().collect(),
        };
        let mut client = UnixStream::connect(&path)?;
        client.set_read_timeout(Some(Duration::from_millis(20)))?;
        // It may hang up in the middle, and be right.
        let _ = client.write_all(&text);
        let mut answer = [0; 256];
        if let Ok(read) = client.read(&mut answer) {
            let answer = String::from_utf8_lossy(&answer[..read]);
            ensure!(!answer.contains("errno=0"), "nonsense was accepted");
        }
        sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
