//! What a change must not do to traffic.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use warren_core::{DeviceChange, PeerChange};
use warren_testkit::traffic::ping::{Flood, Ping};
use warren_testkit::wait;

use crate::common::{End, FAR, INTERFACE, key, nets, pair, peer, third};

/// Runs `changes` while one end pings the other; fails if a ping is lost or the session is another one afterwards.
fn under_traffic(one: &End, two: &End, changes: impl FnOnce() -> Result<()>) -> Result<()> {
    let received = || -> Result<u64> { Ok(one.observe()?.peers[&two.identity.public()].rx_bytes) };
    let flood = Flood::start(&one.netns, FAR, Duration::from_millis(2))?;
    let (start, before) = (Instant::now(), (handshake(one, two)?, received()?));
    changes()?;
    let after = (handshake(one, two)?, received()?);
    let answers = flood.stop()?;
    println!("{answers}, in {:.1?}", start.elapsed());
    answers.complete()?;
    ensure!(after.1 > before.1, "the peer was made anew: its counters began again");
    ensure!(after.0 == before.0, "there was a new handshake: {} after {}", after.0, before.0);
    Ok(())
}

/// When the session began, by `wg`. Sessions are renewed after 120 s (REKEY_AFTER_TIME); these scenarios are over
/// before.
fn handshake(one: &End, two: &End) -> Result<String> {
    let all = one.netns.sh(&format!("wg show {INTERFACE} latest-handshakes"))?;
    let line = all.lines().find(|line| line.starts_with(&two.identity.public().to_string()));
    Ok(line.context("the peer is gone")?.to_owned())
}

pub fn changes_of_others() -> Result<()> {
    let (one, two) = pair()?;
    under_traffic(&one, &two, || {
        for round in 0..5 {
            let others = || (0..100).map(|number| round * 100 + number);
            one.set_peers(others().map(|n| {
                let net = nets(&[&format!("10.{}.{}.0/24", n / 250, n % 250), &format!("fd00:{n:x}::/64")]);
                peer(key(n), "192.0.2.99:51820", net)
            }))?;
            one.set_peers(others().map(|n| PeerChange {
                drop: nets(&[&format!("fd00:{n:x}::/64")]),
                add: nets(&[&format!("fd01:{n:x}::/64")]),
                keepalive: Some(7),
                ..PeerChange::new(key(n))
            }))?;
            one.configure(&DeviceChange { fwmark: Some(round), identity: true, ..DeviceChange::default() })?;
            one.set_peers(others().map(|n| PeerChange { remove: true, ..PeerChange::new(key(n)) }))?;
            ensure!(one.agree()?.peers.len() == 1);
        }
        Ok(())
    })
}

pub fn own_allowed_ips() -> Result<()> {
    let (one, two) = pair()?;
    let far = two.identity.public();
    // Around the one in use in the kernel's tree: above, beside and below. Not what covers the pinged address more
    // narrowly: where the kernel cannot remove it otherwise, it takes that address's packets along for an instant.
    // Warren's networks do not overlap.
    let others = ["10.244.0.0/16", "10.244.3.0/24", "10.244.2.128/25", "fd00:2::/64", "0.0.0.0/0"];
    let many: Vec<String> = (0..2000).map(|n| format!("10.99.{}.{}/32", n / 250, n % 250)).collect();
    let many = nets(&many.iter().map(String::as_str).collect::<Vec<_>>());
    under_traffic(&one, &two, || {
        let mut rounds = 0;
        for _ in 0..60 {
            for net in others {
                for (add, drop) in [(nets(&[net]), nets(&[])), (nets(&[]), nets(&[net]))] {
                    one.set_peers([PeerChange { add, drop, ..PeerChange::new(far) }])?;
                    rounds += 1;
                }
            }
        }
        one.set_peers([PeerChange { add: many.clone(), ..PeerChange::new(far) }])?;
        ensure!(one.observe()?.peers[&far].allowed_ips.len() == 2001);
        one.set_peers([PeerChange { drop: many.clone(), ..PeerChange::new(far) }])?;
        ensure!(one.agree()?.peers[&far].allowed_ips == nets(&["10.244.2.0/24"]));
        // To another peer and back.
        for _ in 0..20 {
            one.set_peers([
                PeerChange { drop: nets(&["10.98.0.0/16"]), ..PeerChange::new(far) },
                peer(key(1), "192.0.2.99:51820", nets(&["10.98.0.0/16"])),
            ])?;
            one.set_peers([
                PeerChange { add: nets(&["10.98.0.0/16"]), ..PeerChange::new(far) },
                PeerChange { drop: nets(&["10.98.0.0/16"]), ..PeerChange::new(key(1)) },
            ])?;
            ensure!(one.agree()?.peers[&far].allowed_ips.len() == 2);
        }
        println!("{rounds} networks added or removed one by one");
        Ok(())
    })
}

/// A network that is in use moves between two real peers, again and again: every packet to it finds one of them. Lost are
/// answers alone, and only those that were under way when their network was given to the other peer: WireGuard takes a
/// source from no peer but the one that has it.
pub fn used_network_moves() -> Result<()> {
    const MOVES: u32 = 2000;
    let (one, two) = pair()?;
    let three = third(&one)?;
    let network = nets(&["10.97.0.0/16"]);
    let shared: IpAddr = "10.97.0.1".parse()?;
    one.netns.ip(&format!("route add 10.97.0.0/16 dev {INTERFACE} src 10.244.1.0"))?;
    for end in [&two, &three] {
        end.netns.ip(&format!("address add {shared}/32 dev {INTERFACE}"))?;
    }
    let give = |from: &End, to: &End, first: bool| {
        let (from, to) = (from.identity.public(), to.identity.public());
        let mut changes = [
            PeerChange { drop: network.clone(), ..PeerChange::new(from) },
            PeerChange { add: network.clone(), ..PeerChange::new(to) },
        ];
        if first {
            changes.reverse();
        }
        one.set_peers(changes)
    };
    // Sessions with both.
    for (from, to) in [(&two, &three), (&three, &two)] {
        give(from, to, true)?;
        wait::until("a session", Duration::from_secs(10), || {
            Ping::default().run(&one.netns, shared)?.complete()
        })?;
    }
    let before = Errors::of(&one)?;
    let flood = Flood::start(&one.netns, shared, wait::patient(Duration::from_millis(2)))?;
    let load = Load::start(&one, [&two, &three], shared)?;
    let start = Instant::now();
    for round in 0..MOVES {
        let (from, to) = if round % 2 == 0 { (&two, &three) } else { (&three, &two) };
        give(from, to, round % 4 < 2)?;
    }
    let took = start.elapsed();
    let datagrams = load.stop()?;
    let answers = flood.stop()?;
    let (found, errors) = (one.agree()?, Errors::of(&one)?);
    ensure!(found.peers[&two.identity.public()].allowed_ips.is_superset(&network), "{found:?}");
    let (nobody, foreign) = (errors.transmit - before.transmit, errors.receive - before.receive);
    println!(
        "{MOVES} moves in {took:.1?} under {datagrams} datagrams and {} pings: {nobody} packets found no peer, \
         {foreign} answers came from the peer of before",
        answers.sent
    );
    ensure!(datagrams > u64::from(MOVES), "{datagrams} datagrams are too few to tell");
    ensure!(nobody == 0, "{nobody} packets found no peer");
    ensure!(answers.missing.len() as u64 == foreign, "{answers}, but {foreign} were refused");
    Ok(())
}

/// What an interface could not send, and what it refused to take.
struct Errors {
    transmit: u64,
    receive: u64,
}

impl Errors {
    fn of(end: &End) -> Result<Self> {
        let read = || fs::read_to_string("/proc/thread-self/net/dev");
        let all = end.netns.run(read)??;
        let line = all.lines().find_map(|line| line.trim_start().strip_prefix(INTERFACE)?.strip_prefix(':'));
        let fields = line.context("there is no such interface")?.split_whitespace();
        let numbers: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>()?;
        // Eight of what is received, bytes, packets and errors first; then the same of what is sent.
        let [_, _, receive, _, _, _, _, _, _, _, transmit, ..] = numbers[..] else { bail!("{all}") };
        Ok(Self { transmit, receive })
    }
}

/// Datagrams, more of them than there are pings, to an address that several ends have.
struct Load {
    over: Arc<AtomicBool>,
    sender: JoinHandle<std::io::Result<u64>>,
    /// Where they arrive, so that nobody answers them.
    _sinks: [UdpSocket; 2],
}

impl Load {
    const PORT: u16 = 7000;

    fn start(from: &End, to: [&End; 2], address: IpAddr) -> Result<Self> {
        let sink = |end: &End| anyhow::Ok(end.netns.run(|| UdpSocket::bind((address, Self::PORT)))??);
        let sinks = [sink(to[0])?, sink(to[1])?];
        let socket = from.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let pause = wait::patient(Duration::from_micros(100));
        let sender = std::thread::spawn(move || {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                socket.send_to(b"load", (address, Self::PORT))?;
                sent += 1;
                std::thread::sleep(pause);
            }
            Ok(sent)
        });
        Ok(Self { over, sender, _sinks: sinks })
    }

    fn stop(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic");
        sent.context("a datagram to the network that moves")
    }
}

pub fn endpoints() -> Result<()> {
    let (one, two) = pair()?;
    let far = two.identity.public();
    two.netns.ip("address add 192.0.2.22/24 dev eth0")?;
    under_traffic(&one, &two, || {
        let endpoint = Some("192.0.2.22:51820".parse()?);
        // A packet that the far end sent from its old address, and that arrives after the change, turns it back:
        // that is roaming.
        wait::until("the new endpoint", Duration::from_secs(5), || {
            one.set_peers([PeerChange { endpoint, keepalive: Some(3), ..PeerChange::new(far) }])?;
            std::thread::sleep(Duration::from_millis(100));
            let found = one.agree()?.peers[&far].endpoint;
            ensure!(found == endpoint, "it is {found:?}");
            Ok(())
        })?;
        one.configure(&DeviceChange { fwmark: Some(9), ..DeviceChange::default() })?;
        Ok(())
    })?;
    // The own port. What is on its way to the old one is lost; the far end follows the first packet from the new one.
    let before = handshake(&one, &two)?;
    one.configure(&DeviceChange { listen_port: Some(51900), ..DeviceChange::default() })?;
    Ping::default().run(&one.netns, FAR)?.complete()?;
    let found = two.agree()?.peers[&one.identity.public()].endpoint;
    ensure!(found == Some("192.0.2.1:51900".parse()?), "the far end sends to {found:?}");
    ensure!(handshake(&one, &two)? == before, "another port took a new handshake");
    Ok(())
}
