//! Links, addresses, routes and rules of this node, over rtnetlink: read back, and applied. No policy.

mod convert;
pub mod watch;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures_util::{Stream, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, LinkUnspec};
use warren_api::names;
use warren_core::{Action, Family, LocalAddress, ObservedLink, Route, RouteKind, Rule};

/// The MTU of Ethernet, in bytes: what to go by for an address on the loopback interface, as routing daemons
/// announce them, whose packets leave by links that only their routes know.
const ETHERNET: u32 = 1500;

/// A connection to the kernel of the network namespace it was opened in.
pub struct Kernel {
    handle: Handle,
}

/// What the kernel holds that matters to Warren.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The tunnel's interface.
    pub link: Option<ObservedLink>,
    /// All routes in Warren's tables.
    pub routes: BTreeSet<Route>,
    /// All rules that lead there.
    pub rules: Vec<Rule>,
    /// Every address on an interface that is not Warren's.
    pub local_addresses: Vec<LocalAddress>,
}

/// Why something could not be read or done.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The netlink socket cannot be opened.
    #[error("a netlink socket could not be opened")]
    Open(#[source] io::Error),
    /// A dump failed.
    #[error("the kernel's {what} could not be read")]
    Read {
        /// Of what.
        what: &'static str,
        /// Why.
        source: Box<rtnetlink::Error>,
    },
    /// A change was refused.
    #[error("the kernel refused to {action}{hint}")]
    Apply {
        /// What was to be done.
        action: String,
        /// Why not.
        source: Box<rtnetlink::Error>,
        /// What to do about it.
        hint: &'static str,
    },
    /// The tunnel's interface is not there.
    #[error("there is no interface {0}")]
    NoInterface(String),
}

impl Kernel {
    /// Opens a connection and has it served in the background.
    pub fn open() -> Result<Self, KernelError> {
        // Strict checking lets the kernel filter dumps by table, so a node's other routes cost nothing.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(KernelError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads back all that matters, with `interface` as the tunnel's.
    pub async fn view(&self, interface: &str) -> Result<View, KernelError> {
        let links: Vec<LinkMessage> = collect("links", self.handle.link().get().execute()).await?;
        let addresses: Vec<AddressMessage> =
            collect("addresses", self.handle.address().get().execute()).await?;
        let mut view = View::default();
        for link in &links {
            let Some(name) = name_of(link) else { continue };
            let on_link = addresses.iter().filter(|address| address.header.index == link.header.index);
            let nets = on_link.filter_map(address_of);
            if name == interface {
                let addresses = nets.map(|net| net.addr()).filter(|address| !is_link_local(*address));
                view.link = Some(ObservedLink { addresses: addresses.collect(), ..observed_link(link) });
            } else if !name.starts_with(names::INTERFACE_PREFIX) {
                let mtu =
                    if link.header.flags.contains(LinkFlags::Loopback) { ETHERNET } else { mtu_of(link) };
                view.local_addresses.extend(nets.map(|net| LocalAddress { net, mtu }));
            }
        }
        let name = |index: u32| links.iter().find(|link| link.header.index == index).and_then(name_of);
        for family in [Family::V4, Family::V6] {
            for table in [names::PODS_TABLE, names::NODES_TABLE] {
                let routes = self.dump_routes(family, table).await?;
                view.routes.extend(routes.iter().filter_map(|route| convert::route(route, &name)));
            }
            let version = if family == Family::V4 { IpVersion::V4 } else { IpVersion::V6 };
            let rules: Vec<RuleMessage> = collect("rules", self.handle.rule().get(version).execute()).await?;
            view.rules.extend(rules.iter().filter_map(convert::rule));
        }
        Ok(view)
    }

    /// Does one thing that concerns the kernel; `interface` is the tunnel's.
    pub async fn apply(&self, interface: &str, action: &Action) -> Result<(), KernelError> {
        let result = match action {
            Action::SetLink { mtu } => {
                let link = LinkUnspec::new_with_name(interface).mtu(*mtu).up().build();
                self.handle.link().set(link).execute().await
            }
            Action::AddAddress(address) => {
                let index = index(interface)?;
                let full = if address.is_ipv4() { 32 } else { 128 };
                let mut add = self.handle.address().add(index, *address, full);
                // A tunnel has nobody to ask whether an address is taken (RFC 4862, section 5.4).
                add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
                add.execute().await
            }
            Action::RemoveAddress(address) => {
                let index = index(interface)?;
                let mut message = AddressMessage::default();
                message.header.index = index;
                let (family, full) = match address {
                    IpAddr::V4(_) => (AddressFamily::Inet, 32),
                    IpAddr::V6(_) => (AddressFamily::Inet6, 128),
                };
                message.header.family = family;
                message.header.prefix_len = full;
                message.attributes.push(AddressAttribute::Local(*address));
                self.handle.address().del(message).execute().await
            }
            Action::AddRoute(route) => {
                let message = convert::route_message(route, self.interface_of(route)?);
                self.handle.route().add(message).replace().execute().await
            }
            Action::RemoveRoute(route) => match self.interface_of(route) {
                Ok(index) => {
                    let message = convert::removal_message(route, index);
                    absent_is_done(self.handle.route().del(message).execute().await)
                }
                // Its interface is gone, and the route with it.
                Err(_) => Ok(()),
            },
            Action::AddRule(rule) => {
                let mut add = self.handle.rule().add();
                *add.message_mut() = convert::rule_message(rule);
                add.execute().await
            }
            Action::RemoveRule(rule) => {
                absent_is_done(self.handle.rule().del(convert::rule_message(rule)).execute().await)
            }
            Action::ReplaceGuard(_) | Action::UpdateGuard { .. } | Action::RemoveGuard => Ok(()),
            Action::StartTunnel { .. } | Action::ConfigureDevice(_) | Action::StopTunnel => Ok(()),
        };
        result.map_err(|source| KernelError::Apply {
            action: action.to_string(),
            hint: hint(&source),
            source: Box::new(source),
        })
    }

    async fn dump_routes(&self, family: Family, table: u32) -> Result<Vec<RouteMessage>, KernelError> {
        let request = self.handle.route().get(convert::table_filter(family, table));
        match collect("routes", request.execute()).await {
            // IPv4's answer when the table has never held a route (net/ipv4/fib_frontend.c).
            Err(KernelError::Read { source, .. }) if code(&source) == Some(nix::libc::ENOENT) => {
                Ok(Vec::new())
            }
            result => result,
        }
    }

    /// The index of the interface that a route leads out of, if it leads out of one.
    fn interface_of(&self, route: &Route) -> Result<Option<u32>, KernelError> {
        match &route.kind {
            RouteKind::Tunnel { interface, .. } => index(interface).map(Some),
            RouteKind::Unreachable | RouteKind::Foreign => Ok(None),
        }
    }
}

fn index(interface: &str) -> Result<u32, KernelError> {
    nix::net::if_::if_nametoindex(interface).map_err(|_| KernelError::NoInterface(interface.to_owned()))
}

async fn collect<T>(
    what: &'static str,
    dump: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, KernelError> {
    dump.try_collect().await.map_err(|source| KernelError::Read { what, source: Box::new(source) })
}

/// Something that should go and is gone already.
fn absent_is_done(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if matches!(code(&error), Some(nix::libc::ESRCH | nix::libc::ENOENT)) => Ok(()),
        result => result,
    }
}

/// The errno of a netlink error.
fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

fn hint(error: &rtnetlink::Error) -> &'static str {
    match code(error) {
        Some(nix::libc::EPERM) => "; warrend needs the capability NET_ADMIN",
        Some(nix::libc::EOPNOTSUPP | nix::libc::EAFNOSUPPORT) => "; is this address family switched off?",
        _ => "",
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn mtu_of(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

fn observed_link(link: &LinkMessage) -> ObservedLink {
    let up = link.header.flags.contains(LinkFlags::Up);
    ObservedLink { mtu: mtu_of(link), up, addresses: BTreeSet::new() }
}

/// An interface's own address; on point-to-point links `Address` is the other end's.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
