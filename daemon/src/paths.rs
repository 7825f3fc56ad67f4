//! How large packets may be on the way to each peer's endpoint, where that is less than the own link suggests.
//!
//! WireGuard does not find out: over IPv4 its packets may be fragmented, so that no router complains. Here a task
//! asks on its behalf. It sends to the peer's WireGuard port a datagram as large as a tunnel's packets get, which
//! no router may fragment and which is no WireGuard message (all zeros), so that the other end drops it without a
//! word. A router with a narrower link ahead answers "fragmentation needed" or "packet too big", and the kernel keeps
//! what it says as an exception of the route, which is read here a moment later.
//!
//! ```text
//!   new, or in doubt ─┐          ┌─► datagram        (one socket for all peers: errors find it)
//!                     ├─ visit ──┤
//!   a minute is over ─┘          └─► 1 s later: the kernel's word (another socket, connected to each in turn)
//!                                       less ──► believed at once
//!                                       more ──► believed when it was said three times in a row
//! ```
//!
//! What the kernel does (net/ipv4/route.c and udp.c, net/ipv6/route.c and udp.c; ip(7)):
//! - It believes an ICMP error only if it quotes a socket of this machine: the probing one has to stay open.
//! - Socket option IP_MTU or IPV6_MTU tells the MTU of a connected socket's route, exceptions included. They are found
//!   when the socket is connected; a newer one needs a new connect.
//! - With IP_PMTUDISC_PROBE, "don't fragment" is set and exceptions are ignored: each probe asks again.
//! - An exception ends after `net.ipv4.route.mtu_expires` or `net.ipv6.route.mtu_expires`, 600 s, unless a probe renews
//!   it. A larger MTU does not replace a smaller one before: so long it takes to notice that a path has grown.
//!   That is why a larger word is not believed at once: the exception may be about to be renewed, or the
//!   answer was lost to the limit that routers set to their errors.
//! - It never believes less than `net.ipv4.route.min_pmtu`, 552 bytes, and 1280 for IPv6.
//!
//! A forged error that quotes WireGuard's ports makes the kernel believe in a narrower path, with or without this.
//! What follows is smaller packets, not less than `warren-core` allows: more work, never a packet in the clear and
//! none lost. Where errors do not arrive at all, nothing is learnt: over IPv4, routers then fragment what
//! WireGuard sends; over IPv6 the path swallows what is too large, and the link's MTU must be set by hand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::connect_unspec;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use tokio::sync::Notify;
use tracing::Instrument as _;
use warren_core::{Tunnel, overhead};

/// The time between a probe and the look at what came of it: longer than any round trip within a cluster. Also the
/// shortest time between two bursts.
const PATIENCE: Duration = Duration::from_secs(1);

/// The probes of one burst: 15 kB on an Ethernet, and of the CPU time of a core 0.02 %. With more than 600 peers, each
/// waits longer for its turn; 6,000 have theirs before the kernel forgets.
const BURST: usize = 10;

/// The time between two probes to the same peer: a tenth of what the kernel remembers.
const INTERVAL: Duration = Duration::from_secs(60);

/// How often a path must seem wider before it is believed.
const DOUBTS: u8 = 3;

/// The headers of a datagram: IP and UDP.
fn headers(address: IpAddr) -> u32 {
    if address.is_ipv6() { 48 } else { 28 }
}

/// The task, as its owner sees it.
pub struct Paths {
    prober: Arc<Mutex<Prober>>,
    wake: Arc<Notify>,
}

impl Paths {
    /// Starts the task, which says on `changed` when there is news. Its sockets are of this thread's network namespace.
    pub fn start(changed: Arc<Notify>) -> Self {
        let prober = Arc::<Mutex<Prober>>::default();
        let wake = Arc::new(Notify::new());
        let task = run(prober.clone(), wake.clone(), changed);
        tokio::spawn(task.instrument(tracing::info_span!("paths")));
        Self { prober, wake }
    }

    /// Sets whom to probe: the peers of these tunnels. Of new ones, what the kernel remembers is read at once.
    /// Returns whether that changed [`Paths::narrow`].
    pub fn follow<'a>(&self, tunnels: impl Iterator<Item = &'a Tunnel>) -> bool {
        let mut prober = lock(&self.prober);
        let (mut mtu, mut mark) = (0, 0);
        let mut endpoints = Vec::with_capacity(prober.endpoints.len());
        for tunnel in tunnels {
            mtu = mtu.max(tunnel.mtu);
            mark = tunnel.fwmark;
            endpoints.extend(tunnel.peers.values().map(|peer| peer.endpoint));
        }
        if prober.endpoints == endpoints && prober.schedule.mtu == mtu {
            return false;
        }
        self.wake.notify_one();
        prober.mark(mark);
        prober.follow(endpoints, mtu)
    }

    /// The largest packet that gets to an address, in bytes, where that is less than what tunnels might send there.
    pub fn narrow(&self) -> BTreeMap<IpAddr, u32> {
        lock(&self.prober).narrow.clone()
    }
}

fn lock(prober: &Mutex<Prober>) -> MutexGuard<'_, Prober> {
    prober.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(prober: Arc<Mutex<Prober>>, wake: Arc<Notify>, changed: Arc<Notify>) {
    loop {
        let now = Instant::now();
        let (news, next) = lock(&prober).burst(now);
        if news {
            changed.notify_one();
        }
        // Whoever is new is in the next burst, which does not come earlier for it.
        tokio::time::sleep(PATIENCE).await;
        let rest = next.map(|next| tokio::time::sleep_until(next.into()));
        tokio::select! {
            () = async { rest.expect("the branch has a condition").await }, if next.is_some() => {}
            () = wake.notified() => {}
        }
    }
}

/// Schedule and sockets.
#[derive(Default)]
struct Prober {
    schedule: Schedule,
    /// All that was last set.
    endpoints: Vec<SocketAddr>,
    narrow: BTreeMap<IpAddr, u32>,
    v4: Sockets,
    v6: Sockets,
}

impl Prober {
    /// Sets the mark by which probes pass the tunnels, as the tunnels' own packets do: inside, they would find each
    /// path as narrow as the route through the tunnel says, and that would make the route narrower still.
    fn mark(&mut self, mark: u32) {
        for sockets in [&mut self.v4, &mut self.v6] {
            if sockets.mark != mark {
                *sockets = Sockets { mark, ..Sockets::default() };
            }
        }
    }

    fn follow(&mut self, endpoints: Vec<SocketAddr>, mtu: u32) -> bool {
        let new = self.schedule.follow(&endpoints, mtu);
        self.endpoints = endpoints;
        for endpoint in new {
            if let Some(word) = self.read(endpoint) {
                self.schedule.learn(endpoint.ip(), word, false);
            }
        }
        self.refresh()
    }

    /// Looks at what came of the last burst, and sends the next. Returns whether there is news, and when to be
    /// called again.
    fn burst(&mut self, now: Instant) -> (bool, Option<Instant>) {
        for endpoint in self.schedule.asked() {
            if let Some(word) = self.read(endpoint) {
                self.schedule.learn(endpoint.ip(), word, true);
            }
        }
        for endpoint in self.schedule.turn(now) {
            let size = self.schedule.largest(endpoint.ip());
            if let Err(error) = self.sockets(endpoint.ip()).probe(endpoint, size) {
                // Without a route, or out of room: nothing is learnt this time.
                tracing::trace!(%error, %endpoint, size, "not probed");
                // The link itself is smaller than those of the node's addresses, and more may be behind it.
                if error.raw_os_error() == Some(libc::EMSGSIZE)
                    && let Some(link) = self.read(endpoint)
                {
                    let _ = self.sockets(endpoint.ip()).probe(endpoint, link.min(size));
                }
            }
        }
        (self.refresh(), self.schedule.next(now))
    }

    fn refresh(&mut self) -> bool {
        let narrow = self.schedule.narrow();
        let news = narrow != self.narrow;
        if news {
            tracing::info!(peers = narrow.len(), "peers with a narrower path than the link's");
            tracing::debug!(?narrow);
        }
        self.narrow = narrow;
        news
    }

    /// What the kernel says of the path to a peer, in bytes, if it has a route.
    fn read(&mut self, endpoint: SocketAddr) -> Option<u32> {
        self.sockets(endpoint.ip()).read(endpoint)
    }

    fn sockets(&mut self, address: IpAddr) -> &mut Sockets {
        if address.is_ipv6() { &mut self.v6 } else { &mut self.v4 }
    }
}

/// The sockets of one address family.
#[derive(Default)]
struct Sockets {
    /// What marks the tunnels' own packets.
    mark: u32,
    open: Option<Open>,
    /// That they cannot be opened has been said.
    complained: bool,
    /// Zeros, as many as the largest probe needed.
    zeros: Vec<u8>,
}

struct Open {
    /// Never connected, so that the errors of all probes are its own.
    probing: UdpSocket,
    reading: UdpSocket,
}

impl Sockets {
    fn open(&mut self, ipv6: bool) -> Option<&Open> {
        let mark = self.mark;
        if self.open.is_none() {
            let open = || io::Result::Ok(Open { probing: socket(ipv6, mark)?, reading: socket(ipv6, mark)? });
            match open() {
                Ok(open) => self.open = Some(open),
                Err(error) if !self.complained => {
                    self.complained = true;
                    tracing::warn!(%error, ipv6, "path MTUs cannot be probed; needed: CAP_NET_ADMIN");
                }
                Err(_) => {}
            }
        }
        self.open.as_ref()
    }

    /// Sends a probe that makes a packet of `bytes`.
    fn probe(&mut self, to: SocketAddr, bytes: u32) -> io::Result<()> {
        let size = bytes.saturating_sub(headers(to.ip())) as usize;
        self.zeros.resize(size.max(self.zeros.len()), 0);
        self.open(to.is_ipv6());
        let Some(open) = &self.open else { return Err(io::ErrorKind::NotConnected.into()) };
        open.probing.send_to(&self.zeros[..size], to).map(drop)
    }

    fn read(&mut self, endpoint: SocketAddr) -> Option<u32> {
        let reading = &self.open(endpoint.is_ipv6())?.reading;
        reading.connect(endpoint).ok()?;
        let mtu = if endpoint.is_ipv6() { ipv6_mtu(reading) } else { ip_mtu(reading) };
        // Else the next connect would keep this one's source address. It cannot fail.
        let _ = connect_unspec(reading);
        mtu.ok()
    }
}

/// A socket whose packets leave as WireGuard's own do, and are never fragmented.
fn socket(ipv6: bool, mark: u32) -> io::Result<UdpSocket> {
    let any: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    // Nobody has anything to say to it; let it be little.
    setsockopt(&socket, sockopt::RcvBuf, &0)?;
    if ipv6 {
        set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
    } else {
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    }
    Ok(socket)
}

/// Whose turn it is, and what is known of each. No sockets, no clock.
#[derive(Default)]
struct Schedule {
    peers: HashMap<IpAddr, Peer>,
    /// The tunnels' MTU.
    mtu: u32,
    /// Those new or in doubt, whose turn is next.
    urgent: VecDeque<IpAddr>,
    /// The others, by the time of their turn. One that is not a peer's own `turn` is no longer valid.
    turns: VecDeque<(Instant, IpAddr)>,
    /// Who was probed in the last burst.
    asked: Vec<IpAddr>,
}

/// What is known of one.
struct Peer {
    port: u16,
    /// The largest packet that gets there.
    path: Option<u32>,
    /// How often in a row it has seemed to be more.
    doubts: u8,
    turn: Option<Instant>,
}

impl Schedule {
    /// Sets whom to probe; returns those who are new.
    fn follow(&mut self, endpoints: &[SocketAddr], mtu: u32) -> Vec<SocketAddr> {
        self.mtu = mtu;
        let mut before = std::mem::take(&mut self.peers);
        let mut new = Vec::new();
        for endpoint in endpoints {
            let (address, port) = (endpoint.ip(), endpoint.port());
            let known = self.peers.contains_key(&address);
            match before.remove(&address) {
                // One for several lanes.
                _ if known => {}
                Some(peer) => drop(self.peers.insert(address, Peer { port, ..peer })),
                None => {
                    self.peers.insert(address, Peer { port, path: None, doubts: 0, turn: None });
                    self.urgent.push_back(address);
                    new.push(*endpoint);
                }
            }
        }
        new
    }

    /// The largest packet that tunnels might send to an address, in bytes.
    fn largest(&self, address: IpAddr) -> u32 {
        self.mtu.saturating_add(overhead(address))
    }

    /// Takes the kernel's word. `asked`: a probe went ahead and could have been answered.
    fn learn(&mut self, address: IpAddr, word: u32, asked: bool) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if peer.path.is_some_and(|path| word > path) {
            if !asked {
                return;
            }
            peer.doubts += 1;
            if peer.doubts < DOUBTS {
                self.urgent.push_back(address);
                return;
            }
        }
        (peer.path, peer.doubts) = (Some(word), 0);
    }

    /// Those probed in the last burst.
    fn asked(&mut self) -> Vec<SocketAddr> {
        let asked = std::mem::take(&mut self.asked);
        asked.into_iter().filter_map(|address| self.endpoint(address)).collect()
    }

    fn endpoint(&self, address: IpAddr) -> Option<SocketAddr> {
        Some(SocketAddr::new(address, self.peers.get(&address)?.port))
    }

    /// Who is to be probed now.
    fn turn(&mut self, now: Instant) -> Vec<SocketAddr> {
        while self.asked.len() < BURST {
            let due = |(turn, _): &(Instant, IpAddr)| *turn <= now;
            let (address, turn) = match self.urgent.pop_front() {
                Some(address) => (address, None),
                None if self.turns.front().is_some_and(due) => {
                    self.turns.pop_front().map(|(turn, address)| (address, Some(turn))).expect("it is there")
                }
                None => break,
            };
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            if turn.is_none_or(|turn| peer.turn == Some(turn)) {
                peer.turn = Some(now + INTERVAL);
                self.turns.push_back((now + INTERVAL, address));
                self.asked.push(address);
            }
        }
        self.asked.iter().filter_map(|address| self.endpoint(*address)).collect()
    }

    /// When there is something to do again.
    fn next(&self, now: Instant) -> Option<Instant> {
        if self.asked.is_empty() && self.urgent.is_empty() {
            self.turns.front().map(|(turn, _)| *turn)
        } else {
            Some(now + PATIENCE)
        }
    }

    /// The paths that are narrower than what tunnels might send.
    fn narrow(&self) -> BTreeMap<IpAddr, u32> {
        let paths = self.peers.iter().filter_map(|(address, peer)| Some((*address, peer.path?)));
        paths.filter(|(address, path)| *path < self.largest(*address)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u16) -> SocketAddr {
        let [high, low] = n.to_be_bytes();
        (Ipv4Addr::new(192, 0, high, low), 51820).into()
    }

    fn following(peers: u16) -> (Schedule, Instant) {
        let mut schedule = Schedule::default();
        let endpoints: Vec<_> = (0..peers).map(endpoint).collect();
        assert_eq!(schedule.follow(&endpoints, 1440), endpoints);
        (schedule, Instant::now())
    }

    #[test]
    fn everybody_is_probed_once_a_minute_and_the_rest_is_silence() {
        let (mut schedule, start) = following(30);
        let (mut now, mut probes, mut looks) = (start, 0, 0);
        while let Some(next) = {
            schedule.asked();
            probes += schedule.turn(now).len();
            looks += 1;
            schedule.next(now).filter(|next| *next < start + 10 * INTERVAL)
        } {
            now = next;
        }
        assert_eq!((probes, looks), (300, 40), "three bursts a minute, and a look at what the third brought");
    }

    #[test]
    fn many_wait_for_their_turn_and_the_new_for_nobody() {
        let (mut schedule, mut now) = following(5000);
        for _ in 0..500 {
            assert_eq!(schedule.turn(now).len(), BURST);
            schedule.asked();
            now += PATIENCE;
        }
        assert_eq!(schedule.turn(now)[0], endpoint(0), "it is overdue, and so are the others");
        schedule.asked();
        let endpoints: Vec<_> = (1..5001).map(endpoint).collect();
        assert_eq!(schedule.follow(&endpoints, 1440), [endpoint(5000)]);
        assert_eq!(schedule.turn(now + PATIENCE)[0], endpoint(5000));
        assert_eq!(schedule.peers.len(), 5000);
    }

    #[test]
    fn less_is_believed_at_once_and_more_at_the_third_word() {
        let (mut schedule, now) = following(1);
        let address = endpoint(0).ip();
        let path = |schedule: &Schedule| schedule.narrow().get(&address).copied();
        schedule.turn(now);
        schedule.learn(address, 1500, false);
        assert_eq!(path(&schedule), None, "as wide as the link");
        schedule.learn(address, 1400, true);
        assert_eq!(path(&schedule), Some(1400));
        schedule.learn(address, 1500, false);
        assert_eq!(path(&schedule), Some(1400), "the kernel has forgotten, and nobody was asked since");
        for _ in 1..DOUBTS {
            schedule.asked();
            schedule.learn(address, 1500, true);
            assert_eq!(path(&schedule), Some(1400));
            assert_eq!(schedule.turn(now), [endpoint(0)], "asked again without delay");
        }
        schedule.learn(address, 1350, true);
        assert_eq!(path(&schedule), Some(1350), "not wider at all");
        schedule.asked();
        for _ in 0..DOUBTS {
            schedule.learn(address, 1500, true);
        }
        assert_eq!(path(&schedule), None);
    }

    #[test]
    fn who_leaves_is_forgotten_and_who_stays_is_known() {
        let (mut schedule, now) = following(2);
        for n in [0, 1] {
            schedule.learn(endpoint(n).ip(), 1400, true);
        }
        let moved = SocketAddr::new(endpoint(1).ip(), 51821);
        assert_eq!(schedule.follow(&[moved, moved], 1440), []);
        assert_eq!(schedule.narrow(), BTreeMap::from([(moved.ip(), 1400)]));
        assert_eq!(schedule.turn(now), [moved]);
        schedule.follow(&[moved], 1300);
        assert_eq!(schedule.narrow(), BTreeMap::new(), "tunnels send no more than 1360 bytes");
    }
}
