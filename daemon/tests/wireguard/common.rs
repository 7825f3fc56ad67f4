//! A network namespace with a WireGuard of its own, and `wg` as the independent witness of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use warren_api::PublicKey;
use warren_core::{DeviceChange, ObservedDevice, PeerChange};
use warren_testkit::lab;
use warren_testkit::netns::Netns;
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;
use warrend::keystore::{self, Identity};
use warrend::wireguard::{Wireguard, WireguardError};

pub const INTERFACE: &str = "warren-a0";

/// The second end of a [`pair`], inside.
pub const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 2, 0));

/// One end of a tunnel.
pub struct End {
    pub netns: Netns,
    pub wireguard: Wireguard,
    pub identity: Identity,
}

impl End {
    pub fn new(name: &str) -> Result<Self> {
        lab::needs_kernel_wireguard()?;
        let netns = Netns::new(name)?;
        let wireguard = netns.run(Wireguard::open)??;
        let home = tempfile::tempdir()?;
        let identity = keystore::load_or_create(&home.path().join("keys"), 0)?;
        Ok(Self { netns, wireguard, identity })
    }

    /// An end whose interface is there, with its key and this port.
    pub fn with_device(name: &str, port: u16) -> Result<Self> {
        let end = Self::new(name)?;
        end.wireguard.create(INTERFACE)?;
        end.configure(&DeviceChange { identity: true, listen_port: Some(port), ..DeviceChange::default() })?;
        Ok(end)
    }

    pub fn configure(&self, change: &DeviceChange) -> Result<(), WireguardError> {
        let configure = || self.wireguard.configure(INTERFACE, change, &self.identity);
        self.netns.run(configure).expect("a namespace can be entered")
    }

    pub fn set_peers(&self, peers: impl IntoIterator<Item = PeerChange>) -> Result<()> {
        Ok(self.configure(&DeviceChange { peers: peers.into_iter().collect(), ..DeviceChange::default() })?)
    }

    pub fn observe(&self) -> Result<ObservedDevice> {
        self.wireguard.observe(INTERFACE)?.context("there is no device")
    }

    /// What `wg` says of the device.
    pub fn witness(&self) -> Result<Witness> {
        Witness::parse(&self.netns.sh(&format!("wg show {INTERFACE} dump"))?)
    }

    /// Fails unless we and `wg` read the same.
    pub fn agree(&self) -> Result<ObservedDevice> {
        let (ours, theirs) = (self.observe()?, self.witness()?);
        ensure!(Witness::from(&ours) == theirs, "we read {ours:?}, wg reads {theirs:?}");
        Ok(ours)
    }
}

/// A device by `wg show … dump`, but for what changes by itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Witness {
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, (Option<SocketAddr>, u16, BTreeSet<IpNet>)>,
}

impl From<&ObservedDevice> for Witness {
    fn from(device: &ObservedDevice) -> Self {
        let peers = device
            .peers
            .iter()
            .map(|(key, peer)| (*key, (peer.endpoint, peer.keepalive, peer.allowed_ips.clone())));
        Self {
            public_key: device.public_key,
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            peers: peers.collect(),
        }
    }
}

impl Witness {
    fn parse(dump: &str) -> Result<Self> {
        let mut lines = dump.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let [_, public_key, port, mark] = lines.next().context("wg says nothing")?[..] else {
            anyhow::bail!("wg's first line has other fields: {dump}");
        };
        let mut peers = BTreeMap::new();
        for line in lines {
            let [key, _, endpoint, nets, _, _, _, keepalive] = line[..] else {
                anyhow::bail!("wg's line has other fields: {line:?}");
            };
            let nets = nets.split(',').filter(|net| *net != "(none)").map(str::parse);
            let settings = (
                (endpoint != "(none)").then(|| endpoint.parse()).transpose()?,
                if keepalive == "off" { 0 } else { keepalive.parse()? },
                nets.collect::<Result<_, _>>()?,
            );
            peers.insert(key.parse()?, settings);
        }
        let fwmark = match mark {
            "off" => 0,
            mark => u32::from_str_radix(mark.trim_start_matches("0x"), 16)?,
        };
        let public_key = (public_key != "(none)").then(|| public_key.parse()).transpose()?;
        Ok(Self { public_key, listen_port: port.parse()?, fwmark, peers })
    }
}

/// A public key that nobody has the other half of.
pub fn key(number: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes).expect("a key in a test")
}

pub fn nets(nets: &[&str]) -> BTreeSet<IpNet> {
    nets.iter().map(|net| net.parse().expect("a network in a test")).collect()
}

/// A new peer.
pub fn peer(key: PublicKey, endpoint: &str, add: BTreeSet<IpNet>) -> PeerChange {
    let endpoint = Some(endpoint.parse().expect("an endpoint in a test"));
    PeerChange { endpoint, keepalive: Some(25), add, ..PeerChange::new(key) }
}

/// Two ends on one wire, 192.0.2.1 and .2 outside and 10.244.1.0 and 10.244.2.0 inside, with a session between them.
pub fn pair() -> Result<(End, End)> {
    let (one, two) = (End::with_device("one", 51820)?, End::with_device("two", 51820)?);
    one.netns.ip(&format!("link add eth0 type veth peer name eth0 netns {}", two.netns.name()))?;
    for (end, other, number) in [(&one, &two, 1), (&two, &one, 2)] {
        end.netns.ip(&format!(
            "link set eth0 up
address add 192.0.2.{number}/24 dev eth0
link set {INTERFACE} up
address add 10.244.{number}.0/32 dev {INTERFACE}
route add 10.244.0.0/16 dev {INTERFACE} src 10.244.{number}.0"
        ))?;
        let far = 3 - number;
        let allowed_ips = nets(&[&format!("10.244.{far}.0/24")]);
        let other = peer(other.identity.public(), &format!("192.0.2.{far}:51820"), allowed_ips);
        // With keepalives the first would send a handshake that the second cannot take yet, and the next one only
        // after five seconds (REKEY_TIMEOUT).
        end.set_peers([PeerChange { keepalive: None, ..other }])?;
    }
    wait::until("a session", Duration::from_secs(10), || Ping::default().run(&one.netns, FAR)?.complete())?;
    Ok((one, two))
}

/// A third end on a wire to the first one of a [`pair`], 192.0.3.1 and .3 outside; the first knows it and sends it
/// nothing.
pub fn third(one: &End) -> Result<End> {
    let three = End::with_device("three", 51820)?;
    one.netns.ip(&format!(
        "link add eth1 type veth peer name eth0 netns {}
link set eth1 up
address add 192.0.3.1/24 dev eth1",
        three.netns.name()
    ))?;
    three.netns.ip(&format!(
        "link set eth0 up
address add 192.0.3.3/24 dev eth0
link set {INTERFACE} up
route add 10.244.1.0/24 dev {INTERFACE}"
    ))?;
    // Without keepalives, as in a pair.
    let first = peer(one.identity.public(), "192.0.3.1:51820", nets(&["10.244.1.0/24"]));
    three.set_peers([PeerChange { keepalive: None, ..first }])?;
    let this = peer(three.identity.public(), "192.0.3.3:51820", nets(&[]));
    one.set_peers([PeerChange { keepalive: None, ..this }])?;
    Ok(three)
}
