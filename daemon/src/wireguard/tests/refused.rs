//! A kernel that refuses a peer, all the way from what is desired and back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use netlink_packet_core::{NlasIterator, Parseable as _};
use netlink_packet_generic::constants::{CTRL_ATTR_FAMILY_ID, GENL_HDRLEN, GENL_ID_CTRL};
use warren_api::Backend;
use warren_core::{Action, Desired, Observed, ObservedLink, ObservedTunnel, Tunnel, TunnelPeer, diff};
use x25519_dalek::StaticSecret;

use super::super::Wireguard;
use super::*;
use crate::keystore::{self, Identity};
use crate::netlink::{ATTEMPTS, Counts, Socket, Wire, u32_at};

const INTERFACE: &str = "warren-a0";
const FAMILY: u16 = 30;
/// `NLMSG_HDRLEN`.
const HEADER: usize = 16;

/// A kernel with one WireGuard device, up, which refuses one peer.
#[derive(Clone, Default)]
struct Kernel {
    device: Rc<RefCell<ObservedDevice>>,
    /// Which peer is refused, by which error, and how often still.
    refuses: Rc<Cell<(u8, i32, usize)>>,
    answers: Rc<RefCell<VecDeque<Vec<u8>>>>,
}

impl Wire for Kernel {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let (kind, sequence, body) = (u16_at(4), u32_at(bytes, 8).unwrap(), &bytes[HEADER..]);
        let dumps = i32::from(u16_at(6)) & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let mut done = 0;
        let bodies = match kind {
            libc::RTM_GETLINK => vec![(libc::RTM_NEWLINK, link())],
            GENL_ID_CTRL => {
                let id = attribute(CTRL_ATTR_FAMILY_ID, &FAMILY.to_ne_bytes());
                vec![(GENL_ID_CTRL, [vec![0; GENL_HDRLEN], id].concat())]
            }
            FAMILY if dumps => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                let parts = answer(&self.device.borrow(), &[2], now);
                parts.into_iter().map(|body| (FAMILY, body)).collect()
            }
            FAMILY => {
                done = self.set(&body[GENL_HDRLEN..]).err().unwrap_or_default();
                Vec::new()
            }
            kind => panic!("a message of kind {kind}"),
        };
        let end = if dumps { libc::NLMSG_DONE } else { libc::NLMSG_ERROR };
        let end = (end as u16, (-done).to_ne_bytes().to_vec());
        let all = bodies.into_iter().chain([end]);
        self.answers.borrow_mut().extend(all.map(|(kind, body)| message(kind, sequence, &body)));
        Ok(bytes.len())
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let answer = self.answers.borrow_mut().pop_front();
        buffer.extend(answer.ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))?);
        Ok(buffer.len())
    }

    fn make_room(&self, _bytes: usize) {}
}

impl Kernel {
    fn refuse(&self, peer: u8, errno: i32, times: usize) {
        self.refuses.set((peer, errno, times));
    }

    /// Does what a message says, up to what is refused.
    fn set(&self, attributes: &[u8]) -> Result<(), i32> {
        let mut device = self.device.borrow_mut();
        for attribute in NlasIterator::new(attributes) {
            match WireguardAttribute::parse(&attribute.unwrap()).unwrap() {
                WireguardAttribute::PrivateKey(key) => {
                    let public = x25519_dalek::PublicKey::from(&StaticSecret::from(key));
                    device.public_key = PublicKey::from_bytes(public.to_bytes()).ok();
                }
                WireguardAttribute::ListenPort(port) => device.listen_port = port,
                WireguardAttribute::Fwmark(mark) => device.fwmark = mark,
                WireguardAttribute::Peers(peers) => {
                    peers.iter().try_for_each(|peer| self.set_peer(&mut device, peer))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn set_peer(&self, device: &mut ObservedDevice, peer: &WireguardPeer) -> Result<(), i32> {
        let mut model = Model::from(&*device);
        let WireguardPeerAttribute::PublicKey(key) = peer.0[0] else { panic!("a peer without a key") };
        match self.refuses.get() {
            (refused, errno, times @ 1..) if key[0] == refused => {
                self.refuse(refused, errno, times - 1);
                return Err(errno);
            }
            _ => {}
        }
        model.set(&[WireguardAttribute::Peers(vec![peer.clone()])], |_| {}).unwrap();
        device.peers = model.observed();
        Ok(())
    }
}

impl From<&ObservedDevice> for Model {
    fn from(device: &ObservedDevice) -> Self {
        let mut model = Self::default();
        for (key, peer) in &device.peers {
            model.peers.insert(*key.as_bytes(), (peer.endpoint, peer.keepalive));
            model.owners.extend(peer.allowed_ips.iter().map(|net| (*net, *key.as_bytes())));
        }
        model
    }
}

impl Model {
    fn observed(&self) -> BTreeMap<PublicKey, ObservedPeer> {
        let peer = |(key, (endpoint, keepalive)): (&Key, &(Option<SocketAddr>, u16))| {
            let allowed_ips = self.nets_of(key);
            let peer = ObservedPeer {
                endpoint: *endpoint,
                keepalive: *keepalive,
                allowed_ips,
                ..ObservedPeer::default()
            };
            (PublicKey::from_bytes(*key).unwrap(), peer)
        };
        self.peers.iter().map(peer).collect()
    }
}

/// The interface of the device, as `struct ifinfomsg` and attributes.
fn link() -> Vec<u8> {
    let mut header = [0; 16];
    header[4] = 1;
    header[8] = libc::IFF_UP as u8;
    let info = attribute(libc::IFLA_INFO_KIND, b"wireguard\0");
    let attributes = [
        attribute(libc::IFLA_IFNAME, b"warren-a0\0"),
        attribute(libc::IFLA_IFALIAS, b"warren\0"),
        attribute(libc::IFLA_LINKINFO, &info),
    ];
    [&header[..], &attributes.concat()].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = [&(length as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 2], &sequence.to_ne_bytes(), &[0; 4]];
    [&header.concat()[..], body].concat()
}

/// One that looks, compares and acts, as the agent does at each look.
struct Node {
    wireguard: Wireguard<Kernel>,
    kernel: Kernel,
    identity: Identity,
    desired: Desired,
}

impl Node {
    /// With eight peers, of two networks each.
    fn new() -> Self {
        let kernel = Kernel::default();
        let wireguard = Wireguard::over(Socket::over(kernel.clone()), Socket::over(kernel.clone()));
        let home = tempfile::tempdir().unwrap();
        let identity = keystore::load_or_create(&home.path().join("keys"), 0).unwrap();
        let peers = (1..9u8).map(|number| {
            let peer = TunnelPeer {
                endpoint: endpoint(number.into()),
                allowed_ips: [v4(number.into()), v6(number.into())].into(),
                keepalive: 25,
            };
            (key(number), peer)
        });
        let tunnel = Tunnel {
            backend: Backend::Kernel,
            mtu: 1420,
            listen_port: 51820,
            fwmark: 1,
            public_key: identity.public(),
            addresses: BTreeSet::new(),
            peers: peers.collect(),
        };
        let tunnels = [(Arc::from(INTERFACE), tunnel)].into();
        Self { wireguard, kernel, identity, desired: Desired { tunnels, ..Desired::default() } }
    }

    fn actions(&self) -> Vec<Action> {
        let link = ObservedLink {
            backend: Backend::Kernel,
            mtu: 1420,
            up: true,
            loose: true,
            addresses: BTreeSet::new(),
        };
        let device = self.wireguard.observe(INTERFACE).unwrap();
        let tunnel = ObservedTunnel { link: Some(link), device };
        let tunnels = [(Arc::from(INTERFACE), tunnel)].into();
        diff(&self.desired, &Observed { tunnels, ..Observed::default() })
    }

    /// Looks and acts once; says which peers were to be changed, and what came of it.
    fn look(&self) -> (Vec<PublicKey>, Result<(), WireguardError>) {
        let actions = self.actions();
        let [Action::ConfigureDevice { change, .. }] = &actions[..] else { panic!("{actions:?}") };
        let peers = change.peers.iter().map(|peer| peer.public_key).collect();
        (peers, self.wireguard.configure(INTERFACE, change, &self.identity))
    }

    /// The peers that are there; each must have what it is to have.
    fn configured(&self) -> Vec<PublicKey> {
        let device = self.kernel.device.borrow();
        let wanted = &self.desired.tunnels[INTERFACE].peers;
        for (key, peer) in &device.peers {
            assert_eq!((&peer.allowed_ips, peer.keepalive), (&wanted[key].allowed_ips, 25), "{key}");
        }
        device.peers.keys().copied().collect()
    }
}

fn keys(numbers: impl IntoIterator<Item = u8>) -> Vec<PublicKey> {
    numbers.into_iter().map(key).collect()
}

#[test]
fn a_kernel_that_refuses_nobody_is_configured_at_once() {
    let node = Node::new();
    let (asked, result) = node.look();
    result.unwrap();
    assert_eq!((asked, node.configured()), (keys(1..9), keys(1..9)));
    assert_eq!(node.actions(), []);
    // The family's number, and the change; a list before it, and one after.
    assert_eq!(node.wireguard.counts(), Counts { sent: 4, interrupted: 0 });
}

#[test]
fn a_refused_peer_is_told_and_tried_again_and_the_others_are_configured() {
    let node = Node::new();
    node.kernel.refuse(3, libc::EINVAL, usize::MAX);
    let (_, result) = node.look();
    let error = result.unwrap_err();
    assert!(
        matches!(&error, WireguardError::PeerRefused { peer, more: 0, .. } if *peer == key(3)),
        "{error}"
    );
    let others = keys((1..9).filter(|number| *number != 3));
    assert_eq!(node.configured(), others);
    // Nobody has its networks: WireGuard drops what is sent there.
    let device = node.wireguard.observe(INTERFACE).unwrap().unwrap();
    let nets: BTreeSet<IpNet> = device.peers.values().flat_map(|peer| peer.allowed_ips.clone()).collect();
    assert_eq!(nets.len(), 14);
    assert!(!nets.contains(&v4(3)) && !nets.contains(&v6(3)));
    assert_eq!((device.listen_port, device.fwmark), (51820, 1));

    // At each further look it alone is asked for, in one message and then by itself.
    for _ in 0..2 {
        let before = node.wireguard.counts().sent;
        let (asked, result) = node.look();
        assert_eq!(asked, keys([3]));
        assert!(matches!(result, Err(WireguardError::PeerRefused { .. })), "{result:?}");
        assert_eq!(node.wireguard.counts().sent - before, 3, "a list and two changes");
        assert_eq!(node.configured(), others);
    }
    node.kernel.refuse(3, 0, 0);
    let (asked, result) = node.look();
    result.unwrap();
    assert_eq!((asked, node.configured()), (keys([3]), keys(1..9)));
    assert_eq!(node.actions(), []);
}

#[test]
fn a_kernel_without_memory_for_a_peer_is_asked_again() {
    let node = Node::new();
    node.kernel.refuse(3, libc::ENOBUFS, ATTEMPTS - 1);
    node.look().1.unwrap();
    assert_eq!(node.configured(), keys(1..9));

    // Where it has none for longer, that is told; what it did stays, and the rest follows.
    let node = Node::new();
    node.kernel.refuse(3, libc::ENOBUFS, ATTEMPTS);
    let error = node.look().1.unwrap_err();
    assert!(matches!(error, WireguardError::NoMemory { .. }), "{error}");
    assert_eq!(node.configured(), keys([1, 2]));
    let (asked, result) = node.look();
    result.unwrap();
    assert_eq!((asked, node.configured()), (keys(3..9), keys(1..9)));
    assert_eq!(node.actions(), []);
}
