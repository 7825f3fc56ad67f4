//! What is done to a node, one thing at a time, and how that reads in logs.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::slice;
use std::sync::Arc;

use ipnet::IpNet;
use warren_api::{Backend, PublicKey};

use crate::desired::{Guard, Port, Route, RouteKind, Rule};

/// One step towards what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Put the whole guard in place, in one transaction, whatever stands there.
    ReplaceGuard(Guard),
    /// Change the guard's sets, in one transaction.
    UpdateGuard {
        /// What to put in.
        add: Guard,
        /// What to take out.
        remove: Guard,
    },
    /// Take the guard away.
    RemoveGuard,
    /// Create a tunnel's interface and the device behind it.
    StartTunnel {
        /// The interface's name.
        interface: Arc<str>,
        /// What is to carry it.
        backend: Backend,
    },
    /// Change a WireGuard device. Peers that are not named stay as they are.
    ConfigureDevice {
        /// The interface's name.
        interface: Arc<str>,
        /// What carries it.
        backend: Backend,
        /// What to change.
        change: DeviceChange,
    },
    /// Set an interface's MTU, make its reverse-path filter loose, and bring it up.
    SetLink {
        /// The interface's name.
        interface: Arc<str>,
        /// In bytes.
        mtu: u32,
    },
    /// Give an interface an address.
    AddAddress {
        /// The interface's name.
        interface: Arc<str>,
        /// The address, a single host's.
        address: IpAddr,
    },
    /// Take an address from an interface.
    RemoveAddress {
        /// The interface's name.
        interface: Arc<str>,
        /// The address.
        address: IpAddr,
    },
    /// Make the reverse-path filter of an underlay's link loose.
    Loosen {
        /// Its number.
        link: u32,
        /// What it has now.
        was: u8,
    },
    /// Set the reverse-path filter of a link back to what it was before Warren made it loose.
    Restore {
        /// Its number.
        link: u32,
        /// To what.
        filter: u8,
    },
    /// Add a route, in place of one with the same key.
    AddRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule, once.
    RemoveRule(Rule),
    /// End a device and remove its interface.
    StopTunnel {
        /// The interface's name.
        interface: Arc<str>,
        /// What carries it.
        backend: Backend,
    },
}

/// A change of a WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChange {
    /// Whether to set the private key.
    pub identity: bool,
    /// The UDP port to listen on.
    pub listen_port: Option<u16>,
    /// The mark of the packets it sends; 0 for none.
    pub fwmark: Option<u32>,
    /// Changes of peers, to be applied in this order.
    pub peers: Vec<PeerChange>,
}

/// A change of one WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// Which peer.
    pub public_key: PublicKey,
    /// Remove it, and nothing else.
    pub remove: bool,
    /// Where to send to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
    /// Allowed IPs to add; each leaves the peer that had it.
    pub add: BTreeSet<IpNet>,
    /// Allowed IPs to remove.
    pub drop: BTreeSet<IpNet>,
}

impl Action {
    /// Whether the action takes something away that still protects or carries traffic.
    pub fn removes(&self) -> bool {
        match self {
            Self::RemoveGuard | Self::RemoveAddress { .. } => true,
            Self::RemoveRoute(_) | Self::RemoveRule(_) | Self::StopTunnel { .. } => true,
            Self::Restore { .. } => true,
            Self::ReplaceGuard(_) | Self::UpdateGuard { .. } | Self::StartTunnel { .. } => false,
            Self::ConfigureDevice { .. } | Self::SetLink { .. } | Self::AddAddress { .. } => false,
            Self::Loosen { .. } => false,
            Self::AddRoute(_) | Self::AddRule(_) => false,
        }
    }

    /// The tunnels' interfaces that it changes, or leads into.
    pub fn interfaces(&self) -> &[Arc<str>] {
        match self {
            Self::StartTunnel { interface, .. }
            | Self::ConfigureDevice { interface, .. }
            | Self::SetLink { interface, .. }
            | Self::AddAddress { interface, .. }
            | Self::RemoveAddress { interface, .. }
            | Self::StopTunnel { interface, .. } => slice::from_ref(interface),
            Self::AddRoute(route) | Self::RemoveRoute(route) => match &route.kind {
                RouteKind::Tunnel { interfaces, .. } => interfaces,
                RouteKind::Unreachable | RouteKind::Foreign => &[],
            },
            Self::ReplaceGuard(_) | Self::UpdateGuard { .. } | Self::RemoveGuard => &[],
            Self::Loosen { .. } | Self::Restore { .. } | Self::AddRule(_) | Self::RemoveRule(_) => &[],
        }
    }

    /// Those of `actions` that have nothing to do with interfaces that could not be had: what has such a name may be
    /// somebody else's, who is to be given neither addresses nor packets.
    pub fn without<'a>(actions: &'a [Self], missing: &BTreeSet<Arc<str>>) -> Cow<'a, [Self]> {
        let is_possible =
            |action: &Self| action.interfaces().iter().all(|interface| !missing.contains(interface));
        if missing.is_empty() {
            Cow::Borrowed(actions)
        } else {
            actions.iter().filter(|action| is_possible(action)).cloned().collect()
        }
    }

    /// Cuts actions into runs that can be applied together: of routes that come or go there may be thousands, and
    /// tunnels take their time to start.
    pub fn runs(actions: &[Self]) -> impl Iterator<Item = &[Self]> {
        actions.chunk_by(|one, next| {
            matches!(
                (one, next),
                (Self::AddRoute(_), Self::AddRoute(_))
                    | (Self::RemoveRoute(_), Self::RemoveRoute(_))
                    | (Self::StartTunnel { .. }, Self::StartTunnel { .. })
            )
        })
    }
}

impl PeerChange {
    /// No change yet.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            endpoint: None,
            keepalive: None,
            add: BTreeSet::new(),
            drop: BTreeSet::new(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplaceGuard(guard) => write!(f, "put the guard in place ({guard})"),
            Self::UpdateGuard { add, remove } => write!(f, "update the guard (add {add}; remove {remove})"),
            Self::RemoveGuard => write!(f, "remove the guard"),
            Self::StartTunnel { interface, backend } => write!(f, "start the {backend} tunnel {interface}"),
            Self::ConfigureDevice { interface, change, .. } => {
                write!(f, "configure the tunnel {interface} ({change})")
            }
            Self::Loosen { link, .. } => {
                write!(
                    f,
                    "make the reverse-path filter of interface {link} loose (net.ipv4.conf.*.rp_filter=2)"
                )
            }
            Self::Restore { link, filter } => {
                write!(f, "set the reverse-path filter of interface {link} back to {filter}")
            }
            Self::SetLink { interface, mtu } => write!(f, "bring {interface} up with MTU {mtu}"),
            Self::AddAddress { interface, address } => write!(f, "add address {address} to {interface}"),
            Self::RemoveAddress { interface, address } => {
                write!(f, "remove address {address} from {interface}")
            }
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
            Self::StopTunnel { interface, backend } => write!(f, "stop the {backend} tunnel {interface}"),
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enforcement: _, remote_pods, local_pods, remote_nodes, hosts } = self;
        let [pods, local, nodes, hosts] = [remote_pods, local_pods, remote_nodes, hosts].map(BTreeSet::len);
        write!(
            f,
            "{pods} remote and {local} local pod networks, {nodes} node addresses, {hosts} of them whole"
        )
    }
}

impl fmt::Display for DeviceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = self.peers.iter().filter(|peer| peer.remove).count();
        write!(f, "{} peers set, {removed} removed", self.peers.len() - removed)?;
        if self.identity { write!(f, ", identity set") } else { Ok(()) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, destination, metric, kind } = self;
        match kind {
            RouteKind::Tunnel { interfaces, mtu, .. } => {
                write!(f, "{destination} dev {}", interfaces.join(","))?;
                mtu.iter().try_for_each(|mtu| write!(f, " mtu {mtu}"))?;
            }
            RouteKind::Unreachable => write!(f, "unreachable {destination}")?,
            RouteKind::Foreign => write!(f, "foreign {destination}")?,
        }
        write!(f, " table {table} metric {metric}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family: _, priority, source, destination, port, unmarked, table } = self;
        let net = |net: &Option<IpNet>| net.map_or("all".to_owned(), |net| net.to_string());
        write!(f, "{priority} from {} to {}", net(source), net(destination))?;
        match port {
            Some(Port::Source(port)) => write!(f, " tcp sport {port}")?,
            Some(Port::Destination(port)) => write!(f, " tcp dport {port}")?,
            None => {}
        }
        unmarked.iter().try_for_each(|mark| write!(f, " not fwmark {mark:#x}"))?;
        write!(f, " lookup {table}")
    }
}
