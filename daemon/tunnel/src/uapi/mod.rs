//! The configuration protocol every userspace WireGuard speaks, as types: text in, text out.
//!
//! A WireGuard program serves a unix stream socket per interface ([`socket_path`]). Over it come two
//! requests, each a block of `key=value` lines closed by an empty line: `get=1`, answered with the whole
//! state, and `set=1`, which carries changes. Every answer ends with `errno=N` and an empty line, where 0
//! is success and anything else a number of `errno.h`, of either sign (servers and `wg(8)` disagree with the
//! protocol's page about it; [`UapiError::Refused`] has it positive).
//!
//! * [`DeviceUpdate`] and [`PeerUpdate`] are a `set=1` request: only what is to change.
//! * [`DeviceState`] and [`PeerState`] are the answer to `get=1`: all there is.
//! * [`client`] asks and sets over the socket; the program's own server lives beside the device.
//!
//! Parsing checks a request as a whole before any of it can be applied, so a bad line never leaves a
//! half-changed device. Nothing here keeps a key longer than needed: keys and texts that contain them are
//! zeroised on drop, `Debug` prints no key but public ones, and errors name lines and keys, never values.
//!
//! Source: <https://www.wireguard.com/xplatform/>; where that page is silent, the kernel's
//! `drivers/net/wireguard/netlink.c` decides.

pub mod client;
mod encode;
mod framing;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

pub use framing::{Framed, MAX_BLOCK, SecretText};
pub use parse::UapiError;

/// A Curve25519 private key or a preshared key: 32 bytes that must not outlive their use.
pub type SecretKey = Zeroizing<[u8; 32]>;

/// The directory of all configuration sockets; `wg(8)` looks for interfaces here.
pub const SOCKET_DIR: &str = "/var/run/wireguard";

const SOCKET: &str = ".sock";
const WANTED: &str = ".wanted";

/// How the keys of counters begin.
const DROPPED: &str = "warren_dropped_";
const FALLBACK: &str = "warren_fallback_";

/// Where the socket of interface `ifname` lives: `/var/run/wireguard/IFNAME.sock`.
pub fn socket_path(ifname: &str) -> PathBuf {
    PathBuf::from(format!("{SOCKET_DIR}/{ifname}{SOCKET}"))
}

/// The file whose existence says that somebody wants `interface`, for programs that serve on demand.
pub fn wanted_path(interface: &str) -> PathBuf {
    PathBuf::from(format!("{SOCKET_DIR}/{interface}{WANTED}"))
}

/// The interfaces that have a socket, whether anybody listens behind it or not.
///
/// # Errors
/// When [`SOCKET_DIR`] cannot be read. That it is missing means that there is no interface.
pub fn with_socket() -> io::Result<BTreeSet<String>> {
    with_file(SOCKET)
}

/// The interfaces that somebody wants.
///
/// # Errors
/// As for [`with_socket`].
pub fn wanted() -> io::Result<BTreeSet<String>> {
    with_file(WANTED)
}

fn with_file(kind: &str) -> io::Result<BTreeSet<String>> {
    let files = match fs::read_dir(SOCKET_DIR) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut interfaces = BTreeSet::new();
    for file in files {
        let name = file?.file_name();
        interfaces.extend(name.to_str().and_then(|name| name.strip_suffix(kind)).map(str::to_owned));
    }
    Ok(interfaces)
}

/// A `set=1` request: what is to change on the device, and on which peers.
///
/// The device's own fields apply first, then `replace_peers`, then `peers` in their order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DeviceUpdate {
    /// The new private key; all zeros take the present one away. Sessions end when it changes.
    pub private_key: Option<SecretKey>,
    /// The UDP port to listen on; 0 chooses a free one.
    pub listen_port: Option<u16>,
    /// The mark (`SO_MARK`) of outgoing datagrams; 0 is none.
    pub fwmark: Option<u32>,
    /// Remove every peer first, with its sessions, even those that `peers` names again (the kernel's
    /// `WGDEVICE_F_REPLACE_PEERS`).
    pub replace_peers: bool,
    /// Changes of single peers. A key named twice is changed twice.
    pub peers: Vec<PeerUpdate>,
}

/// What is to change on one peer. An unknown peer is created, unless `update_only` or `remove` is set.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerUpdate {
    /// Which peer.
    pub public_key: [u8; 32],
    /// Remove the peer; the other fields then mean nothing.
    pub remove: bool,
    /// Do nothing if there is no such peer.
    pub update_only: bool,
    /// The new preshared key; all zeros take the present one away.
    pub preshared_key: Option<SecretKey>,
    /// The new endpoint. Authenticated packets from elsewhere move it again (roaming).
    pub endpoint: Option<SocketAddr>,
    /// Interval of persistent keepalives, in seconds; 0 turns them off.
    pub persistent_keepalive: Option<u16>,
    /// How many lanes there are to the peer, 1 at least: tunnels of their own, of which each has the port behind the one
    /// before, on both ends. No other program knows this key (`warren_lanes`), and a request that has it is refused there.
    pub lanes: Option<u16>,
    /// Take all allowed IPs of the peer away before `allowed_ips` apply.
    pub replace_allowed_ips: bool,
    /// Allowed IPs to add or remove, in this order.
    pub allowed_ips: Vec<AllowedIpChange>,
}

/// One `allowed_ip` line. On the wire a removal has a minus: `allowed_ip=-10.0.0.0/8`, the text form of
/// the kernel's `WGALLOWEDIP_F_REMOVE_ME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedIpChange {
    /// The network; bits beyond the prefix length are ignored.
    pub net: IpNet,
    /// Remove it, if it is this peer's. Otherwise it is added, and taken from whoever had it.
    pub remove: bool,
}

/// The answer to `get=1`: a device as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The private key, if there is one.
    pub private_key: Option<SecretKey>,
    /// The UDP port listened on; 0 while no socket is bound.
    pub listen_port: u16,
    /// The mark of outgoing datagrams; 0 is none.
    pub fwmark: u32,
    /// Packets lost since the start, by reason (`warren_dropped_REASON`). No other program tells; wg(8) skips it.
    pub dropped: BTreeMap<String, u64>,
    /// What went another way than the usual, by reason (`warren_fallback_REASON`); nothing of it is lost.
    pub fallbacks: BTreeMap<String, u64>,
    /// All peers.
    pub peers: Vec<PeerState>,
}

/// One peer as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Who it is.
    pub public_key: [u8; 32],
    /// The preshared key, if there is one.
    pub preshared_key: Option<SecretKey>,
    /// Where its packets are sent to, once known.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed, since the UNIX epoch.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it in authenticated datagrams, with WireGuard's overhead.
    pub rx_bytes: u64,
    /// Bytes sent to it, with WireGuard's overhead.
    pub tx_bytes: u64,
    /// Interval of persistent keepalives, in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// How many lanes there are to the peer. The key is in an answer only if they are more than 1; wg(8) skips it.
    pub lanes: u16,
    /// The networks it may send from and is sent packets for.
    pub allowed_ips: Vec<IpNet>,
}

impl PeerUpdate {
    /// A request that creates the peer `public_key` if it does not exist, and changes nothing else.
    pub fn new(public_key: [u8; 32]) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            lanes: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

impl PeerState {
    /// A peer of which nothing but its key is known.
    pub fn new(public_key: [u8; 32]) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: 0,
            lanes: 1,
            allowed_ips: Vec::new(),
        }
    }
}

impl AllowedIpChange {
    /// Give `net` to the peer.
    pub fn add(net: IpNet) -> Self {
        Self { net, remove: false }
    }

    /// Take `net` from the peer.
    pub fn remove(net: IpNet) -> Self {
        Self { net, remove: true }
    }
}

/// Stands for a secret in `Debug` output: says that there is one, never which.
struct Redacted;

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A public key in `Debug` output: its first bytes, as much as a log line needs.
pub(crate) struct ShortKey<'a>(pub(crate) &'a [u8; 32]);

impl fmt::Debug for ShortKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}…")
    }
}

fn redacted(key: &Option<SecretKey>) -> Option<Redacted> {
    key.as_ref().map(|_| Redacted)
}

impl fmt::Debug for DeviceUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceUpdate")
            .field("private_key", &redacted(&self.private_key))
            .field("listen_port", &self.listen_port)
            .field("fwmark", &self.fwmark)
            .field("replace_peers", &self.replace_peers)
            .field("peers", &self.peers)
            .finish()
    }
}

impl fmt::Debug for PeerUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerUpdate")
            .field("public_key", &ShortKey(&self.public_key))
            .field("remove", &self.remove)
            .field("update_only", &self.update_only)
            .field("preshared_key", &redacted(&self.preshared_key))
            .field("endpoint", &self.endpoint)
            .field("persistent_keepalive", &self.persistent_keepalive)
            .field("lanes", &self.lanes)
            .field("replace_allowed_ips", &self.replace_allowed_ips)
            .field("allowed_ips", &self.allowed_ips)
            .finish()
    }
}

impl fmt::Debug for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceState")
            .field("private_key", &redacted(&self.private_key))
            .field("listen_port", &self.listen_port)
            .field("fwmark", &self.fwmark)
            .field("dropped", &self.dropped)
            .field("fallbacks", &self.fallbacks)
            .field("peers", &self.peers)
            .finish()
    }
}

impl fmt::Debug for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerState")
            .field("public_key", &ShortKey(&self.public_key))
            .field("preshared_key", &redacted(&self.preshared_key))
            .field("endpoint", &self.endpoint)
            .field("last_handshake", &self.last_handshake)
            .field("rx_bytes", &self.rx_bytes)
            .field("tx_bytes", &self.tx_bytes)
            .field("persistent_keepalive", &self.persistent_keepalive)
            .field("lanes", &self.lanes)
            .field("allowed_ips", &self.allowed_ips)
            .finish()
    }
}
