//! Messages as bytes, and the kernel's answers back as a device (`linux/wireguard.h`).
//!
//! What WireGuard's attributes look like is known to `netlink-packet-wireguard`. The private key never goes through
//! its types, which would be copied on their way: it is put into the request last, and skipped in answers.

use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NlasIterator, Parseable as _};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::constants::{
    CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_CMD_GETFAMILY, GENL_HDRLEN, GENL_ID_CTRL,
};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags,
    WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute,
    WireguardPeerFlags, WireguardTimeSpec,
};
use warren_api::PublicKey;
use warren_core::ObservedDevice;

use super::plan::{AllowedIp, Message, Part, Verb};
use crate::netlink::{Request, attributes};

/// `WGDEVICE_A_PRIVATE_KEY`.
const PRIVATE_KEY: u16 = 3;

/// The version of the protocol of generic netlink's own family.
const CTRL_VERSION: u8 = 2;

/// What asks for the number of WireGuard's family; the kernel loads the module where it can.
pub fn get_family() -> Request {
    let mut request = Request::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, CTRL_VERSION, 0, 0]);
    request.put_name(CTRL_ATTR_FAMILY_NAME, "wireguard");
    request
}

/// The number of the family, from the answer.
pub fn family_of(answer: &[u8]) -> Option<u16> {
    let mut found = attributes(answer.get(GENL_HDRLEN..)?);
    found
        .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
        .and_then(|(_, id)| Some(u16::from_ne_bytes(id.try_into().ok()?)))
}

/// What asks for all of a device.
pub fn get_device(family: u16, interface: u32) -> Request {
    request(family, WireguardCmd::GetDevice, vec![WireguardAttribute::IfIndex(interface)])
}

/// What changes a device. With the private key in it, to be wiped after use.
pub fn set_device(family: u16, interface: u32, message: &Message, secret: Option<&[u8; 32]>) -> Request {
    let attributes = attributes_of(interface, message);
    let mut request = request(family, WireguardCmd::SetDevice, attributes);
    if let Some(secret) = secret.filter(|_| message.device.identity) {
        request.put(PRIVATE_KEY, secret);
    }
    request
}

/// All that a message says but the private key.
pub fn attributes_of(interface: u32, message: &Message) -> Vec<WireguardAttribute> {
    let mut attributes = vec![WireguardAttribute::IfIndex(interface)];
    attributes.extend(message.device.listen_port.map(WireguardAttribute::ListenPort));
    attributes.extend(message.device.fwmark.map(WireguardAttribute::Fwmark));
    let peers: Vec<_> = message.parts().map(peer).collect();
    if !peers.is_empty() {
        attributes.push(WireguardAttribute::Peers(peers));
    }
    attributes
}

fn request(family: u16, cmd: WireguardCmd, attributes: Vec<WireguardAttribute>) -> Request {
    let message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
    Request::of(family, 0, &message)
}

fn peer(part: &Part) -> WireguardPeer {
    let Part { key, verb, endpoint, keepalive, allowed_ips } = part;
    let flags = match verb {
        Verb::Set => WireguardPeerFlags::empty(),
        Verb::Update => WireguardPeerFlags::UpdateOnly,
        Verb::Remove => WireguardPeerFlags::RemoveMe,
    };
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(*key), WireguardPeerAttribute::Flags(flags)];
    attributes.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    if !allowed_ips.is_empty() {
        let allowed_ips = allowed_ips.iter().map(allowed_ip).collect();
        attributes.push(WireguardPeerAttribute::AllowedIps(allowed_ips));
    }
    WireguardPeer(attributes)
}

fn allowed_ip(AllowedIp { net, remove }: &AllowedIp) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    let mut attributes = vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ];
    if *remove {
        // A kernel that does not know the attribute refuses the message, which is how that is found out.
        attributes.push(WireguardAllowedIpAttr::Flags(WireguardAllowedIpFlags::RemoveMe));
    }
    WireguardAllowedIp(attributes)
}

/// A device, from the messages of a dump. A peer with more allowed IPs than fit into one message goes on in the next,
/// with nothing but its key and more of them.
#[derive(Debug, Default)]
pub struct Reading {
    device: ObservedDevice,
    error: Option<DecodeError>,
}

impl Reading {
    /// Reads one message; `now` is the time since the Unix epoch.
    pub fn read(&mut self, message: &[u8], now: Duration) {
        for attribute in NlasIterator::new(message.get(GENL_HDRLEN..).unwrap_or_default()) {
            let attribute = match attribute {
                Ok(attribute) if attribute.kind() == PRIVATE_KEY => continue,
                Ok(attribute) => WireguardAttribute::parse(&attribute),
                Err(error) => Err(error),
            };
            match attribute {
                Ok(attribute) => self.add(attribute, now),
                Err(error) => self.error = Some(error),
            }
        }
    }

    /// What was read.
    pub fn finish(self) -> Result<ObservedDevice, DecodeError> {
        self.error.map_or(Ok(self.device), Err)
    }

    fn add(&mut self, attribute: WireguardAttribute, now: Duration) {
        match attribute {
            WireguardAttribute::PublicKey(key) => self.device.public_key = PublicKey::from_bytes(key).ok(),
            WireguardAttribute::ListenPort(port) => self.device.listen_port = port,
            WireguardAttribute::Fwmark(mark) => self.device.fwmark = mark,
            WireguardAttribute::Peers(peers) => peers.into_iter().for_each(|peer| self.add_peer(peer, now)),
            _ => {}
        }
    }

    fn add_peer(&mut self, peer: WireguardPeer, now: Duration) {
        let key = peer.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::PublicKey(key) => PublicKey::from_bytes(*key).ok(),
            _ => None,
        });
        let Some(key) = key else { return };
        let found = self.device.peers.entry(key).or_default();
        for attribute in peer.0 {
            match attribute {
                WireguardPeerAttribute::Endpoint(endpoint) => found.endpoint = Some(endpoint),
                WireguardPeerAttribute::PersistentKeepalive(seconds) => found.keepalive = seconds,
                WireguardPeerAttribute::LastHandshake(at) => found.since_handshake = since(at, now),
                WireguardPeerAttribute::RxBytes(bytes) => found.rx_bytes = bytes,
                WireguardPeerAttribute::TxBytes(bytes) => found.tx_bytes = bytes,
                WireguardPeerAttribute::AllowedIps(nets) => {
                    found.allowed_ips.extend(nets.iter().filter_map(net));
                }
                _ => {}
            }
        }
    }
}

/// The kernel's clock for this is CLOCK_REALTIME, like ours; a time of zero means never. A clock that was set back
/// makes a handshake of the future, which is taken for one of just now.
fn since(at: WireguardTimeSpec, now: Duration) -> Option<Duration> {
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let at = Duration::new(seconds, u32::try_from(at.nano_seconds).unwrap_or_default());
    (!at.is_zero()).then(|| now.saturating_sub(at))
}

fn net(allowed_ip: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in allowed_ip.iter() {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => length = Some(*found),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}
