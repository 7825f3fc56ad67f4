//! Links, addresses, routes and rules of this node, over rtnetlink(7): read back, and applied. No policy.

mod addresses;
mod collisions;
mod dumps;
mod links;
mod routes;
mod rules;
pub mod spread;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use warren_api::names;
use warren_core::{Action, Family, LocalAddress, Numbers, ObservedLink, Route, RouteKind, Rule};

use crate::netlink::{Request, Socket, patiently};
use crate::{marks, rewrites};
use routes::Interfaces;

/// The MTU of Ethernet, in bytes: what to go by for an address on the loopback interface, as routing daemons
/// announce them, whose packets leave by links that only their routes know.
const ETHERNET: u32 = 1500;

/// A connection to the kernel of the network namespace it was opened in.
pub struct Kernel {
    socket: Mutex<Socket>,
    numbers: Numbers,
}

/// What the kernel holds that matters to Warren.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The tunnels' interfaces, and all TUNs that have the name of one's: whose they are, the kernel does not know.
    pub links: BTreeMap<Arc<str>, ObservedLink>,
    /// Interfaces that have the name of a tunnel's and are not Warren's.
    pub foreign: BTreeSet<Arc<str>>,
    /// The other interfaces whose reverse-path filter is strict, by their numbers, with what each has itself.
    pub strict: BTreeMap<u32, u8>,
    /// Those whose own is loose.
    pub loose: BTreeSet<u32>,
    /// All routes in Warren's tables.
    pub routes: BTreeSet<Route>,
    /// All rules that lead there.
    pub rules: Vec<Rule>,
    /// Every address on an interface that is not Warren's.
    pub local_addresses: Vec<LocalAddress>,
    /// Whether flows are spread over several interfaces by their ports, too.
    pub spread_by_ports: bool,
}

/// Why something could not be read or done.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The netlink socket cannot be opened.
    #[error("a netlink socket could not be opened")]
    Open(#[source] io::Error),
    /// The notices of what changes are refused.
    #[error("the kernel's notices cannot be subscribed to{hint}")]
    Watch {
        /// Why.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A dump failed.
    #[error("the kernel's {what} could not be read{hint}")]
    Read {
        /// Of what.
        what: &'static str,
        /// Why.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A change was refused.
    #[error("the kernel refused to {action}{hint}")]
    Apply {
        /// What was to be done.
        action: String,
        /// Why not.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A tunnel's interface is not there.
    #[error("there is no interface {0}")]
    NoInterface(String),
}

impl Kernel {
    /// Opens a connection.
    pub fn open(numbers: Numbers) -> Result<Self, KernelError> {
        let socket = Socket::open(NETLINK_ROUTE).map_err(KernelError::Open)?;
        Ok(Self { socket: Mutex::new(socket), numbers })
    }

    /// Reads back all that matters.
    pub async fn view(&self) -> Result<View, KernelError> {
        let links = dumps::links(&mut self.socket()).map_err(|source| unreadable("links", source))?;
        let addresses =
            dumps::addresses(&mut self.socket()).map_err(|source| unreadable("addresses", source))?;
        let mut view = View { spread_by_ports: spread::by_ports(), ..View::default() };
        let filter = links::common_filter();
        for link in &links {
            let Some(name) = name_of(link) else { continue };
            let on_link = addresses.iter().filter(|address| address.header.index == link.header.index);
            let nets = on_link.filter_map(addresses::own);
            if names::is_tunnel(name) {
                let addresses =
                    nets.map(|net| net.addr()).filter(|address| !addresses::is_link_local(*address));
                match links::observed(link, addresses.collect()) {
                    Some(link) => drop(view.links.insert(name.into(), link)),
                    None => drop(view.foreign.insert(name.into())),
                }
            } else if !name.starts_with(names::INTERFACE_PREFIX) {
                if let Some(own) = links::strict_filter(link, filter) {
                    view.strict.insert(link.header.index, own);
                } else if links::is_loose(link) {
                    view.loose.insert(link.header.index);
                }
                let mtu =
                    if link.header.flags.contains(LinkFlags::Loopback) { ETHERNET } else { links::mtu(link) };
                view.local_addresses.extend(nets.map(|net| LocalAddress {
                    net,
                    link: link.header.index,
                    mtu,
                }));
            }
        }
        view.rules.extend(self.rules()?.iter().filter_map(rules::rule));
        // Those of before, where the numbers have changed, too.
        let tables = view.rules.iter().map(|rule| rule.table).filter(|table| *table != names::MAIN_TABLE);
        let tables = tables.chain(self.numbers.tables()).collect();
        let name = |link: &LinkMessage| Some((link.header.index, Arc::from([Arc::from(name_of(link)?)])));
        view.routes = self.routes(&tables, &links.iter().filter_map(name).collect())?;
        Ok(view)
    }

    /// Who else has what is to be Warren's, each with what to do about it; nobody, once Warren has it.
    pub async fn collisions(&self) -> Result<Vec<String>, KernelError> {
        let view = self.view().await?;
        let (rule, table) = (self.numbers.pods_rule(), self.numbers.pods_table());
        if view.rules.iter().any(|own| (own.priority, own.table) == (rule, table)) {
            return Ok(Vec::new());
        }
        let rules = self.rules()?;
        let routes: Vec<&Route> =
            view.routes.iter().filter(|route| self.numbers.tables().contains(&route.table)).collect();
        let mut found = collisions::find(&self.numbers, &rules, &routes);
        let marks = marks::find_others(self.numbers.mark).await;
        found.extend(marks.map_err(|source| unreadable("firewall rules", source))?);
        let rewrites = rewrites::find_others(self.numbers.chains);
        found.extend(rewrites.map_err(|source| unreadable("firewall chains", source))?);
        Ok(found)
    }

    /// Those of IPv4 before those of IPv6.
    fn rules(&self) -> Result<Vec<RuleMessage>, KernelError> {
        let mut rules = Vec::new();
        for family in [Family::V4, Family::V6] {
            let found = dumps::rules(&mut self.socket(), family);
            rules.extend(found.map_err(|source| unreadable("rules", source))?);
        }
        Ok(rules)
    }

    fn routes(
        &self,
        tables: &BTreeSet<u32>,
        interfaces: &Interfaces,
    ) -> Result<BTreeSet<Route>, KernelError> {
        let mut socket = self.socket();
        let mut found = Vec::new();
        for family in [Family::V4, Family::V6] {
            for table in tables {
                let routes = routes::list(&mut socket, family, *table, interfaces);
                found.extend(routes.map_err(|source| unreadable("routes", source))?);
            }
        }
        Ok(found.into_iter().collect())
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        // A conversation that a panic broke off is told from the next by its number.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or removes many routes. Those that are refused for one reason make one error.
    pub fn apply_routes(&self, actions: &[Action]) -> Vec<KernelError> {
        let mut errors = Vec::new();
        let (mut tried, mut requests) = (Vec::new(), Vec::new());
        let mut indices = HashMap::new();
        for action in actions {
            match route_request(action, &mut indices) {
                Ok(Some(request)) => {
                    tried.push(action);
                    requests.push(request);
                }
                Ok(None) => {}
                Err(error) if errors.is_empty() => errors.push(error),
                // The same of all other routes.
                Err(_) => {}
            }
        }
        let refused = match patiently(|| self.socket().change(&mut requests)) {
            Ok(refused) => refused,
            Err(source) => vec![(0, source)],
        };
        let mut reasons: Vec<(io::Error, &Action, usize)> = Vec::new();
        for (index, reason) in refused {
            let action = tried[index];
            if action.removes() && is_absence(&reason) {
                continue;
            }
            match reasons.iter_mut().find(|(other, ..)| other.raw_os_error() == reason.raw_os_error()) {
                Some((_, _, more)) => *more += 1,
                None => reasons.push((reason, action, 0)),
            }
        }
        errors.extend(reasons.into_iter().map(|(reason, action, more)| {
            let more = if more == 0 { String::new() } else { format!(", and {more} more") };
            refusal(format!("{action}{more}"), reason)
        }));
        errors
    }

    /// Does one thing that concerns the kernel.
    pub fn apply(&self, action: &Action) -> Result<(), KernelError> {
        let mut request = match action {
            Action::SetLink { interface, mtu } => links::up(index(interface)?, *mtu),
            Action::Loosen { link, .. } => links::filter(*link, links::LOOSE),
            Action::Restore { link, filter } => links::filter(*link, *filter),
            Action::AddAddress { interface, address } => addresses::addition(index(interface)?, *address),
            Action::RemoveAddress { interface, address } => addresses::removal(index(interface)?, *address),
            Action::AddRule(rule) => rules::addition(rule),
            Action::RemoveRule(rule) => rules::removal(rule),
            Action::AddRoute(_) | Action::RemoveRoute(_) => {
                return self.apply_routes(slice::from_ref(action)).into_iter().next().map_or(Ok(()), Err);
            }
            Action::ReplaceGuard(_) | Action::UpdateGuard { .. } | Action::RemoveGuard => return Ok(()),
            Action::StartTunnel { .. } | Action::ConfigureDevice { .. } | Action::StopTunnel { .. } => {
                return Ok(());
            }
        };
        match patiently(|| self.socket().get(&mut request, |(), _| {})) {
            Err(error) if action.removes() && is_absence(&error) => Ok(()),
            result => result.map_err(|source| refusal(action.to_string(), source)),
        }
    }
}

/// What is to be sent for one route, if anything. `indices` are those of the interfaces that were asked for before.
fn route_request<'a>(
    action: &'a Action,
    indices: &mut HashMap<&'a str, Option<u32>>,
) -> Result<Option<Request>, KernelError> {
    let (Action::AddRoute(route) | Action::RemoveRoute(route)) = action else { return Ok(None) };
    let mut found = Vec::new();
    if let RouteKind::Tunnel { interfaces, .. } = &route.kind {
        for interface in &**interfaces {
            match *indices.entry(interface).or_insert_with(|| index(interface).ok()) {
                // Where its interface is gone, so is the route.
                None if action.removes() => return Ok(None),
                None => return Err(KernelError::NoInterface(interface.to_string())),
                Some(index) => found.push(index),
            }
        }
    }
    let removes = action.removes();
    Ok(Some(if removes { routes::removal(route, &found) } else { routes::addition(route, &found) }))
}

fn index(interface: &str) -> Result<u32, KernelError> {
    nix::net::if_::if_nametoindex(interface).map_err(|_| KernelError::NoInterface(interface.to_owned()))
}

/// Whether what should go is gone already: a route, a rule, or an address.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL))
}

fn unreadable(what: &'static str, source: io::Error) -> KernelError {
    let hint = hint(&source);
    KernelError::Read { what, source, hint }
}

fn refusal(action: String, source: io::Error) -> KernelError {
    let hint = hint(&source);
    KernelError::Apply { action, source, hint }
}

/// What to do about a refusal.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => "; warrend needs the capability NET_ADMIN",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => "; is this address family switched off?",
        // A tunnel's interface takes its port as it comes up.
        Some(libc::EADDRINUSE) => {
            "; its UDP port is taken: see who has it with `ss -lunp`, or choose another with --listen-port"
        }
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "; the kernel has no memory for it: see what uses it up with `slabtop`; this is tried again"
        }
        _ => "",
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}
