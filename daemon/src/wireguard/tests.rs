//! Changes cut into messages and answers put together, against a model of the kernel.

mod refused;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::Emitable as _;
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags,
    WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute,
    WireguardPeerFlags, WireguardTimeSpec,
};
use nix::libc;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use warren_api::PublicKey;
use warren_core::{DeviceChange, ObservedDevice, ObservedPeer, PeerChange};

use super::deliver::deliver;
use super::error::WireguardError;
use super::link::{Link, throwaway_name};
use super::plan::{self, LIMIT, Message, Removal};
use super::wire::{self, Reading};

type Key = [u8; 32];

const DECOY: Key = [77; 32];

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).expect("a key in a test")
}

fn v4(number: u32) -> IpNet {
    Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (number << 8)), 24).expect("a prefix").into()
}

fn v6(number: u128) -> IpNet {
    Ipv6Net::new(Ipv6Addr::from(0xfd00 << 112 | number << 64), 64).expect("a prefix").into()
}

fn endpoint(number: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), number)
}

/// The kernel's device as far as it matters here: who has which allowed IP, and each peer's settings. What it does
/// with an attribute is what `drivers/net/wireguard/netlink.c` of Linux 6.1 does, or of 6.16 if it knows the flag.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    peers: BTreeMap<Key, (Option<SocketAddr>, u16)>,
    owners: BTreeMap<IpNet, Key>,
    knows_flag: bool,
}

impl Model {
    /// Does what a message says; `each` sees what packets can see in between.
    fn set(&mut self, message: &[WireguardAttribute], mut each: impl FnMut(&Self)) -> io::Result<()> {
        for attribute in message {
            match attribute {
                WireguardAttribute::Peers(peers) => {
                    peers.iter().try_for_each(|peer| self.set_peer(peer, &mut each))?;
                }
                WireguardAttribute::Flags(_) => panic!("peers are replaced"),
                _ => {}
            }
        }
        Ok(())
    }

    fn set_peer(&mut self, peer: &WireguardPeer, each: &mut impl FnMut(&Self)) -> io::Result<()> {
        let (mut key, mut flags) = (None, WireguardPeerFlags::empty());
        for attribute in &peer.0 {
            match attribute {
                WireguardPeerAttribute::PublicKey(found) => key = Some(*found),
                WireguardPeerAttribute::Flags(found) => flags = *found,
                _ => {}
            }
        }
        let key = key.expect("a peer has a key");
        assert!(!flags.contains(WireguardPeerFlags::ReplaceAllowedIps), "allowed IPs are replaced");
        let missing = !self.peers.contains_key(&key);
        if missing && flags.intersects(WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly) {
            return Ok(());
        }
        if flags.contains(WireguardPeerFlags::RemoveMe) {
            self.owners.retain(|_, owner| *owner != key);
            self.peers.remove(&key);
            each(self);
            return Ok(());
        }
        let settings = self.peers.entry(key).or_default();
        for attribute in &peer.0 {
            match attribute {
                WireguardPeerAttribute::Endpoint(found) => settings.0 = Some(*found),
                WireguardPeerAttribute::PersistentKeepalive(found) => settings.1 = *found,
                _ => {}
            }
        }
        for attribute in &peer.0 {
            let WireguardPeerAttribute::AllowedIps(nets) = attribute else { continue };
            nets.iter().try_for_each(|net| {
                self.set_allowed_ip(key, net)?;
                each(self);
                Ok::<_, io::Error>(())
            })?;
        }
        Ok(())
    }

    fn set_allowed_ip(&mut self, key: Key, allowed_ip: &WireguardAllowedIp) -> io::Result<()> {
        let (mut address, mut length, mut remove) = (None, None, false);
        for attribute in allowed_ip.iter() {
            match attribute {
                WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
                WireguardAllowedIpAttr::Cidr(found) => length = Some(*found),
                WireguardAllowedIpAttr::Flags(flags) if self.knows_flag => {
                    remove = flags.contains(WireguardAllowedIpFlags::RemoveMe);
                }
                WireguardAllowedIpAttr::Flags(_) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
                _ => {}
            }
        }
        let net = IpNet::new(address.expect("an address"), length.expect("a length")).expect("a network");
        match remove {
            true if self.owners.get(&net) == Some(&key) => drop(self.owners.remove(&net)),
            true => {}
            false => drop(self.owners.insert(net, key)),
        }
        Ok(())
    }

    fn nets_of(&self, key: &Key) -> BTreeSet<IpNet> {
        self.owners.iter().filter(|(_, owner)| *owner == key).map(|(net, _)| *net).collect()
    }

    /// What leads from here to there, as warren-core says it.
    fn change_to(&self, wanted: &Self) -> DeviceChange {
        let mut peers = Vec::new();
        for (key, (endpoint, keepalive)) in &wanted.peers {
            let found = self.peers.get(key).copied().unwrap_or_default();
            let (has, wants) = (self.nets_of(key), wanted.nets_of(key));
            peers.push(PeerChange {
                endpoint: endpoint.filter(|_| found.0 != *endpoint),
                keepalive: (found.1 != *keepalive).then_some(*keepalive),
                add: &wants - &has,
                drop: &has - &wants,
                ..PeerChange::new(PublicKey::from_bytes(*key).expect("a key in a test"))
            });
        }
        for key in self.peers.keys().filter(|key| !wanted.peers.contains_key(*key)) {
            let key = PublicKey::from_bytes(*key).expect("a key in a test");
            peers.push(PeerChange { remove: true, ..PeerChange::new(key) });
        }
        DeviceChange { peers, ..DeviceChange::default() }
    }
}

fn mk_model(knows_flag: bool) -> impl Strategy<Value = Model> {
    let net = prop_oneof![(0..20u32).prop_map(v4), (0..20u128).prop_map(v6)];
    let settings = ((1..9u16).prop_map(|port| Some(endpoint(port))), 0..3u16);
    let peers = btree_map((1..7u8).prop_map(|number| [number; 32]), settings, 1..7);
    (peers, btree_map(net, any::<prop::sample::Index>(), 0..40)).prop_map(move |(peers, owners)| {
        let keys: Vec<Key> = peers.keys().copied().collect();
        let owners = owners.into_iter().map(|(net, owner)| (net, *owner.get(&keys))).collect();
        Model { peers, owners, knows_flag }
    })
}

proptest! {
    /// Whatever device becomes whatever other one: the messages lead there, and on the way no packet is without its
    /// peer, and no peer without its session.
    #[test]
    fn every_change_arrives_and_disturbs_nobody(
        (before, after) in any::<bool>().prop_flat_map(|flag| (mk_model(flag), mk_model(flag)))
    ) {
        let removal = if before.knows_flag { Removal::Flag } else { Removal::Decoy(DECOY) };
        let mut model = before.clone();
        for message in plan::messages(&before.change_to(&after), removal) {
            model.set(&wire::attributes_of(1, &message), |now| {
                for (net, was) in &before.owners {
                    let (is, will) = (now.owners.get(net), after.owners.get(net));
                    let fine = match will {
                        Some(_) => is == Some(was) || is == will,
                        None => is.is_none_or(|is| is == was || *is == DECOY),
                    };
                    assert!(fine, "{net} was {was:?}, will be {will:?}, and is {is:?}");
                }
                for key in after.peers.keys().filter(|key| before.peers.contains_key(*key)) {
                    assert!(now.peers.contains_key(key), "a peer that stays was removed");
                }
            }).unwrap();
        }
        prop_assert_eq!(model, after);
    }

    /// However many peers and allowed IPs: no message is longer than allowed, and together they say all.
    #[test]
    fn no_message_is_too_long(
        (peers, flag, device) in (vec((0..4000u32, 0..4000u32, 0..3000u128, option::of(1..9u16)), 0..6), any::<bool>(), any::<bool>())
    ) {
        let removal = if flag { Removal::Flag } else { Removal::Decoy(DECOY) };
        let peers = peers.into_iter().zip(1..).map(|((add, drop, add6, port), number)| {
            let first = u32::from(number) << 13;
            PeerChange {
                endpoint: port.map(endpoint),
                keepalive: port,
                add: (first..first + add).map(v4).chain((0..add6).map(|n| v6(n + u128::from(first)))).collect(),
                drop: (first + 4000..first + 4000 + drop).map(v4).collect(),
                ..PeerChange::new(key(number))
            }
        });
        let change = DeviceChange {
            identity: device,
            listen_port: device.then_some(51820),
            fwmark: device.then_some(1),
            peers: peers.collect(),
        };
        let mut model = Model { knows_flag: flag, ..Model::default() };
        for peer in &change.peers {
            model.peers.insert(*peer.public_key.as_bytes(), (None, 0));
            model.owners.extend(peer.drop.iter().map(|net| (*net, *peer.public_key.as_bytes())));
        }
        let messages = plan::messages(&change, removal);
        for (index, message) in messages.iter().enumerate() {
            let size = wire::set_device(30, 1, message, Some(&[1; 32])).size();
            prop_assert!(size <= LIMIT, "message {index} has {size} bytes");
            prop_assert!(index == 0 || message.device == plan::Device::default());
            model.set(&wire::attributes_of(1, message), |_| {}).unwrap();
        }
        for peer in &change.peers {
            prop_assert_eq!(&model.nets_of(peer.public_key.as_bytes()), &peer.add);
        }
        let bytes: usize = messages.iter().map(|message| wire::set_device(30, 1, message, None).size()).sum();
        // A peer that fits into one message is not spread over two, so a message may end early; but never two that
        // would have fitted into one.
        let most = 1 + 2 * bytes.div_ceil(LIMIT - 200);
        prop_assert!(messages.len() <= most, "{} messages for {bytes} bytes", messages.len());
    }

    /// However the kernel cuts its answer: put together it is the device.
    #[test]
    fn answers_are_put_together(
        peers in btree_map(1..9u8, (option::of(1..9u16), 0..40u32, 0..9u16, 0..500u64), 0..8),
        cuts in vec(0..12usize, 1..30),
    ) {
        let now = Duration::from_secs(1_800_000_000);
        let peers = peers.into_iter().map(|(number, (port, nets, keepalive, ago))| {
            let first = u32::from(number) * 100;
            let peer = ObservedPeer {
                endpoint: port.map(endpoint),
                allowed_ips: (first..first + nets).flat_map(|net| [v4(net), v6(net.into())]).collect(),
                keepalive,
                since_handshake: (ago > 0).then(|| Duration::new(ago, 5)),
                rx_bytes: ago,
                tx_bytes: ago + 1,
            };
            (key(number), peer)
        });
        let device = ObservedDevice {
            public_key: Some(key(100)),
            listen_port: 51820,
            fwmark: 7,
            counters: Default::default(),
            peers: peers.collect(),
        };
        let mut reading = Reading::default();
        for message in answer(&device, &cuts, now) {
            reading.read(&message, now);
        }
        prop_assert_eq!(reading.finish().unwrap(), device);
    }
}

/// A device as the kernel's dump tells it, cut after as many allowed IPs as `cuts` say, in turn.
fn answer(device: &ObservedDevice, cuts: &[usize], now: Duration) -> Vec<Vec<u8>> {
    let mut cuts = cuts.iter().copied().chain([3]).cycle();
    let mut messages = Vec::new();
    let mut open: Vec<WireguardPeer> = Vec::new();
    for (key, peer) in &device.peers {
        let mut nets: Vec<IpNet> = peer.allowed_ips.iter().copied().collect();
        let mut attributes = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes())];
        let at = peer.since_handshake.map(|since| now - since).unwrap_or_default();
        attributes.extend([
            WireguardPeerAttribute::PresharedKey([0; 32]),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec {
                seconds: at.as_secs() as i64,
                nano_seconds: at.subsec_nanos().into(),
            }),
            WireguardPeerAttribute::PersistentKeepalive(peer.keepalive),
            WireguardPeerAttribute::TxBytes(peer.tx_bytes),
            WireguardPeerAttribute::RxBytes(peer.rx_bytes),
            WireguardPeerAttribute::ProtocolVersion(1),
        ]);
        attributes.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
        loop {
            let later = nets.split_off(cuts.next().unwrap_or_default().min(nets.len()));
            attributes.push(WireguardPeerAttribute::AllowedIps(nets.iter().map(told).collect()));
            open.push(WireguardPeer(attributes));
            if later.is_empty() {
                break;
            }
            messages.push(open.split_off(0));
            attributes = vec![WireguardPeerAttribute::PublicKey(*key.as_bytes())];
            nets = later;
        }
    }
    messages.push(open);
    let mut head = vec![
        WireguardAttribute::ListenPort(device.listen_port),
        WireguardAttribute::Fwmark(device.fwmark),
        WireguardAttribute::IfIndex(3),
        WireguardAttribute::IfName("warren-a0".to_owned()),
        WireguardAttribute::PrivateKey([9; 32]),
    ];
    head.extend(device.public_key.map(|key| WireguardAttribute::PublicKey(*key.as_bytes())));
    let message = |peers: Vec<WireguardPeer>| {
        let mut attributes = head.split_off(0);
        attributes.push(WireguardAttribute::Peers(peers));
        let message =
            GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::GetDevice, attributes });
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    };
    messages.into_iter().map(message).collect()
}

fn told(net: &IpNet) -> WireguardAllowedIp {
    let family =
        if matches!(net, IpNet::V4(_)) { WireguardAddressFamily::Ipv4 } else { WireguardAddressFamily::Ipv6 };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
    ])
}

#[test]
fn one_peer_changes_in_one_message() {
    let change = PeerChange {
        endpoint: Some(endpoint(1)),
        keepalive: Some(25),
        add: [v4(1), v6(1)].into(),
        drop: [v4(2), v6(2)].into(),
        ..PeerChange::new(key(1))
    };
    let change = DeviceChange { peers: vec![change], ..DeviceChange::default() };
    for removal in [Removal::Flag, Removal::Decoy(DECOY)] {
        assert_eq!(plan::messages(&change, removal).len(), 1, "{removal:?}");
    }
    assert!(plan::messages(&DeviceChange::default(), Removal::Flag).is_empty());
}

#[test]
fn a_peer_that_went_meanwhile_is_not_brought_back_by_halves() {
    let changed = PeerChange { add: [v4(1)].into(), drop: [v4(2)].into(), ..PeerChange::new(key(1)) };
    let fresh = PeerChange { endpoint: Some(endpoint(1)), add: [v4(3)].into(), ..PeerChange::new(key(2)) };
    let change = DeviceChange { peers: vec![changed, fresh], ..DeviceChange::default() };
    for removal in [Removal::Flag, Removal::Decoy(DECOY)] {
        let mut model = Model { knows_flag: true, ..Model::default() };
        for message in plan::messages(&change, removal) {
            model.set(&wire::attributes_of(1, &message), |_| {}).unwrap();
        }
        assert_eq!(model.peers.keys().collect::<Vec<_>>(), [&[2; 32]], "{removal:?}");
        assert_eq!(model.owners, [(v4(3), [2; 32])].into(), "{removal:?}");
    }
}

#[test]
fn only_a_kernel_that_knows_the_flag_takes_the_trial() {
    for knows_flag in [false, true] {
        let mut model = Model { knows_flag, ..Model::default() };
        let taken = model.set(&wire::attributes_of(1, &Message::trial(DECOY)), |_| {});
        assert_eq!(taken.is_ok(), knows_flag);
    }
}

#[test]
fn a_refused_peer_has_a_name_and_holds_up_nobody() {
    let peers =
        (1..9).map(|number| PeerChange { endpoint: Some(endpoint(1)), ..PeerChange::new(key(number)) });
    let change = DeviceChange { listen_port: Some(1), peers: peers.collect(), ..DeviceChange::default() };
    let messages = plan::messages(&change, Removal::Flag);
    let done = RefCell::new(BTreeSet::new());
    // As the kernel does: up to the first that it refuses.
    let send = |message: &Message| {
        message.parts().try_for_each(|part| match part.key[0] {
            3 | 5 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            number => {
                done.borrow_mut().insert(number);
                Ok(())
            }
        })
    };
    let refusals = deliver(&messages, send).unwrap();
    assert_eq!(refusals.iter().map(|refusal| refusal.peer).collect::<Vec<_>>(), [key(3), key(5)]);
    assert_eq!(done.into_inner(), [1, 2, 4, 6, 7, 8].into());
    let mut sent = 0;
    let error = deliver(&messages, |_| {
        sent += 1;
        Err(io::Error::from_raw_os_error(libc::EPERM))
    });
    assert_eq!((error.unwrap_err().raw_os_error(), sent), (Some(libc::EPERM), 1), "all would be refused");
}

#[test]
fn errors_say_what_to_do() {
    let refused = |errno| {
        let source = io::Error::from_raw_os_error(errno);
        WireguardError::refused("configure the device", "warren-a0", source).to_string()
    };
    for errno in [libc::EOPNOTSUPP, libc::ENOENT] {
        assert!(refused(errno).contains("--backend userspace"), "{}", refused(errno));
    }
    assert!(refused(libc::EPERM).contains("NET_ADMIN"));
    assert!(refused(libc::ENODEV).contains("no interface warren-a0"));
    assert!(refused(libc::ENOBUFS).contains("no memory to configure the device warren-a0"));
    let peer = |more| {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        WireguardError::PeerRefused { peer: key(1), more, source }.to_string()
    };
    assert!(peer(0).contains(&key(1).to_string()) && !peer(0).contains("more"), "{}", peer(0));
    assert!(peer(2).contains("and 2 more"), "{}", peer(2));
}

#[test]
fn only_a_marked_wireguard_is_ours() {
    let link = |kind: Option<&str>, alias: Option<&str>| Link {
        index: 1,
        name: "warren-a0".to_owned(),
        kind: kind.map(str::to_owned),
        alias: alias.map(str::to_owned),
        up: false,
    };
    assert!(link(Some("wireguard"), Some("warren")).is_ours());
    for (kind, alias) in [
        (Some("wireguard"), None),
        (Some("wireguard"), Some("mine")),
        (Some("tun"), Some("warren")),
        (None, None),
    ] {
        assert!(!link(kind, alias).is_ours(), "{kind:?} {alias:?}");
        let error = WireguardError::foreign(&link(kind, alias)).to_string();
        assert!(error.contains("warren-a0") && error.contains("not Warren's"), "{error}");
    }
    let left = Link { name: throwaway_name(7), ..link(Some("wireguard"), Some("warren")) };
    assert!(left.is_left_behind() && left.name.len() < libc::IFNAMSIZ, "{left:?}");
    assert!(!link(Some("wireguard"), Some("warren")).is_left_behind());
    assert!(!Link { alias: None, ..left }.is_left_behind());
}
