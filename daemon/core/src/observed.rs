//! What was read back from the kernel and the tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use warren_api::status::TunnelCounters;
use warren_api::{Backend, PublicKey};

use crate::{Guard, Route, Rule, Tunnel};

/// All of Warren's that was found on this node. The default is a node that Warren never touched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The guard, unless it is absent or its rules are not those that Warren writes: then it is put anew.
    pub guard: Option<Guard>,
    /// Whether a guard's table exists at all, intact or not.
    pub guard_table: bool,
    /// Everything that may be a tunnel, by the name of its interface.
    pub tunnels: BTreeMap<Arc<str>, ObservedTunnel>,
    /// The links whose reverse-path filter is strict, by their numbers, each with what it has itself: that may be less,
    /// since the greater of it and of all interfaces' counts.
    pub strict: BTreeMap<u32, u8>,
    /// The links that Warren made loose, and that still are, each with what its reverse-path filter was before.
    pub loosened: BTreeMap<u32, u8>,
    /// All routes in Warren's tables, as far as Warren could have made them.
    pub routes: BTreeSet<Route>,
    /// All rules that lead to Warren's tables; a rule may stand twice.
    pub rules: Vec<Rule>,
}

/// A tunnel, or what is left of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedTunnel {
    /// The interface.
    pub link: Option<ObservedLink>,
    /// The WireGuard device behind it.
    pub device: Option<ObservedDevice>,
}

impl ObservedTunnel {
    /// What carries it. An interface that is gone left a process behind.
    pub fn backend(&self) -> Backend {
        self.link.as_ref().map_or(Backend::Userspace, |link| link.backend)
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// What made it.
    pub backend: Backend,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether the reverse-path filter lets packets in whose replies leave by another interface.
    pub loose: bool,
    /// Its addresses, without link-local ones.
    pub addresses: BTreeSet<IpAddr>,
}

/// A WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedDevice {
    /// Its public key, if it has a key.
    pub public_key: Option<PublicKey>,
    /// Its UDP port.
    pub listen_port: u16,
    /// The mark of the packets it sends; 0 for none.
    pub fwmark: u32,
    /// What it counts, if it does.
    pub counters: TunnelCounters,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// A WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedPeer {
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// Its allowed IPs.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives, 0 for none.
    pub keepalive: u16,
    /// Since the last completed handshake.
    pub since_handshake: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

impl ObservedPeer {
    /// After this time without a handshake a session is dead on both ends (REJECT_AFTER_TIME, WireGuard
    /// whitepaper section 6.1).
    pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

    /// Whether packets may still be exchanged with it without a new handshake.
    pub fn is_alive(&self) -> bool {
        self.since_handshake.is_some_and(|since| since < Self::REJECT_AFTER_TIME)
    }
}

impl From<&Tunnel> for ObservedDevice {
    /// The device as it should be: what to go by while a tunnel that is there cannot be asked, so that all
    /// the rest is still kept in order.
    fn from(tunnel: &Tunnel) -> Self {
        let peers = tunnel.peers.iter().map(|(key, peer)| {
            let observed = ObservedPeer {
                endpoint: Some(peer.endpoint),
                allowed_ips: peer.allowed_ips.clone(),
                keepalive: peer.keepalive,
                ..ObservedPeer::default()
            };
            (*key, observed)
        });
        Self {
            public_key: Some(tunnel.public_key),
            listen_port: tunnel.listen_port,
            fwmark: tunnel.fwmark,
            counters: TunnelCounters::default(),
            peers: peers.collect(),
        }
    }
}
