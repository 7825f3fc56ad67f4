//! The backend `kernel`: WireGuard interfaces of the kernel, over netlink.
//!
//! ```text
//!  probe, create, remove ── link ────── rtnetlink ────────┐
//!                                                         ├── kernel
//!  configure ── plan ── deliver ──┐                       │
//!                                 ├ wire ─ generic netlink┘
//!  observe ───────────────────────┘
//! ```
//!
//! `plan` turns a change into messages, purely; `deliver` sees them through; `wire` writes them and reads answers;
//! `link` finds and makes interfaces. Here they meet the kernel.
//!
//! The kernel answers within the system call that asks, so nothing here waits ([`crate::netlink`]). It keeps its
//! devices when this daemon ends.
//!
//! The private key is in this daemon's memory only while it is sent, and that memory is overwritten; so are the
//! kernel's answers, which hold it, too. (The kernel leaves its own buffers as they are: `wg_get_device_dump` in
//! `drivers/net/wireguard/netlink.c`.)

mod deliver;
mod error;
mod link;
mod plan;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use nix::libc;
use rand_core::{OsRng, RngCore as _};
use warren_core::{DeviceChange, ObservedDevice};

use crate::keystore::Identity;
use crate::netlink::{Counts, Socket, Wire, patiently};
use deliver::{Refusal, deliver};
pub use error::WireguardError;
use error::errno;
use link::Link;
use plan::{Message, Removal};
use wire::Reading;

/// A connection to the WireGuard of the network namespace it was opened in.
pub struct Wireguard<W = netlink_sys::Socket>(Mutex<Sockets<W>>);

struct Sockets<W> {
    route: Socket<W>,
    generic: Socket<W>,
    /// The number of WireGuard's family, once it is known.
    family: Option<u16>,
    /// Whether the kernel knows [`Removal::Flag`], once it was asked.
    knows_flag: Option<bool>,
}

impl Wireguard {
    /// Opens a connection, also where the kernel has no WireGuard.
    pub fn open() -> Result<Self, WireguardError> {
        let open = |protocol| Socket::open(protocol).map_err(WireguardError::Open);
        Ok(Self::over(open(NETLINK_ROUTE)?, open(NETLINK_GENERIC)?))
    }
}

impl<W: Wire> Wireguard<W> {
    fn over(route: Socket<W>, generic: Socket<W>) -> Self {
        Self(Mutex::new(Sockets { route, generic, family: None, knows_flag: None }))
    }

    /// What was said to WireGuard's family so far.
    pub fn counts(&self) -> Counts {
        self.sockets().generic.counts()
    }

    /// Tries whether all that this backend needs is there and allowed: makes an interface, changes and reads its
    /// device, and removes it.
    pub fn probe(&self) -> Result<(), WireguardError> {
        let mut sockets = self.sockets();
        sockets.knows_flag = None;
        sockets.knows_flag().map(drop).map_err(refused("try WireGuard with", "an interface"))
    }

    /// Creates an interface, down and without a key. One of Warren's that is there already stays as it is.
    pub fn create(&self, interface: &str) -> Result<(), WireguardError> {
        let refused = refused("create the interface", interface);
        let mut sockets = self.sockets();
        match sockets.find(interface) {
            Ok(Some(link)) if link.is_ours() => Ok(()),
            Ok(Some(link)) => Err(WireguardError::foreign(&link)),
            Ok(None) => sockets.create(interface).map_err(refused),
            Err(error) => Err(refused(error)),
        }
    }

    /// Removes an interface of Warren's.
    pub fn remove(&self, interface: &str) -> Result<(), WireguardError> {
        let refused = refused("remove the interface", interface);
        let mut sockets = self.sockets();
        match sockets.find(interface) {
            Ok(Some(link)) if link.is_ours() => link::delete(&mut sockets.route, link.index).map_err(refused),
            Ok(Some(link)) => Err(WireguardError::foreign(&link)),
            Ok(None) => Ok(()),
            Err(error) => Err(refused(error)),
        }
    }

    /// Reads a device back; `None` if there is no WireGuard interface of that name. Somebody else's is an error.
    pub fn observe(&self, interface: &str) -> Result<Option<ObservedDevice>, WireguardError> {
        let refused = refused("show the device", interface);
        let mut sockets = self.sockets();
        let reading = match sockets.find(interface) {
            Ok(Some(link)) if link.is_ours() => sockets.read(link.index),
            Ok(Some(link)) if link.is_wireguard() => return Err(WireguardError::foreign(&link)),
            Ok(_) => return Ok(None),
            Err(error) => Err(error),
        };
        match reading {
            Ok(reading) => reading
                .finish()
                .map(Some)
                .map_err(|source| WireguardError::Answer { interface: interface.to_owned(), source }),
            // It went meanwhile.
            Err(error) if errno(&error) == libc::ENODEV => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// Changes a device of Warren's. To be called in its network namespace.
    ///
    /// Nothing is touched but what the change names. Where it fails, a part of it may be done; to do it again does no
    /// harm. A peer that is refused does not hold up the others.
    ///
    /// Who changes a peer without naming its endpoint means one that is there: if it is gone, nothing is done. An
    /// allowed IP that one peer drops and another adds moves, in whatever order they come.
    pub fn configure(
        &self,
        interface: &str,
        change: &DeviceChange,
        identity: &Identity,
    ) -> Result<(), WireguardError> {
        let refused = refused("configure the device", interface);
        let mut sockets = self.sockets();
        let done = match sockets.find(interface) {
            Ok(Some(link)) if link.is_ours() => sockets.change(&link, change, identity),
            Ok(Some(link)) => return Err(WireguardError::foreign(&link)),
            Ok(None) => return Err(WireguardError::NoInterface(interface.to_owned())),
            Err(error) => Err(error),
        };
        let refusals = done.map_err(|source| match change.listen_port {
            Some(port) if errno(&source) == libc::EADDRINUSE => WireguardError::PortTaken { port },
            _ => refused(source),
        })?;
        let more = refusals.len().saturating_sub(1);
        match refusals.into_iter().next() {
            Some(Refusal { peer, source }) => Err(WireguardError::PeerRefused { peer, more, source }),
            None => Ok(()),
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets<W>> {
        // A conversation that a panic broke off is told from the next by its number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Wire> Sockets<W> {
    fn find(&mut self, interface: &str) -> io::Result<Option<Link>> {
        link::find(&mut self.route, interface)
    }

    fn create(&mut self, interface: &str) -> io::Result<()> {
        self.tidy()?;
        let link = self.make()?;
        link::rename(&mut self.route, link.index, interface).inspect_err(|_| {
            // What cannot be removed either is tidied up by the next attempt.
            let _ = link::delete(&mut self.route, link.index);
        })
    }

    /// Removes what a daemon that was killed left half made.
    fn tidy(&mut self) -> io::Result<()> {
        let links = link::list(&mut self.route)?;
        let mut left = links.iter().filter(|link| link.is_left_behind());
        left.try_for_each(|link| link::delete(&mut self.route, link.index))
    }

    /// Makes an interface of Warren's under a name that means nothing.
    fn make(&mut self) -> io::Result<Link> {
        let name = link::throwaway_name(OsRng.next_u32());
        link::create(&mut self.route, &name)?;
        self.find(&name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn read(&mut self, index: u32) -> io::Result<Reading> {
        self.talk(|socket, family| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let reading =
                socket.dump(&mut wire::get_device(family, index), |reading: &mut Reading, message| {
                    reading.read(message, now);
                });
            socket.wipe();
            reading
        })
    }

    fn change(
        &mut self,
        link: &Link,
        change: &DeviceChange,
        identity: &Identity,
    ) -> io::Result<Vec<Refusal>> {
        if let Some(port) = change.listen_port.filter(|_| !link.up) {
            // A device that is down only notes its port. If it is told now, it can be told which.
            try_port(port)?;
        }
        let drops = change.peers.iter().any(|peer| !peer.remove && !peer.drop.is_empty());
        let removal = if !drops || self.knows_flag()? { Removal::Flag } else { decoy() };
        let messages = plan::messages(change, removal);
        deliver(&messages, |message| self.send(link.index, message, Some(identity)))
    }

    /// Whether the kernel can remove a single allowed IP: it refuses attributes that it does not know
    /// (`nla_parse_nested`), but only where it looks at them, which is in a peer that is there or is to be. That is
    /// tried on an interface of its own.
    fn knows_flag(&mut self) -> io::Result<bool> {
        if let Some(known) = self.knows_flag {
            return Ok(known);
        }
        let link = self.make()?;
        let Removal::Decoy(key) = decoy() else { unreachable!("it is one") };
        let answer = self.send(link.index, &Message::trial(key), None);
        let answer = answer.and_then(|()| self.read(link.index).map(drop));
        link::delete(&mut self.route, link.index)?;
        let known = match answer {
            Ok(()) => true,
            Err(error) if errno(&error) == libc::EINVAL => false,
            Err(error) => return Err(error),
        };
        self.knows_flag = Some(known);
        Ok(known)
    }

    fn send(&mut self, index: u32, message: &Message, identity: Option<&Identity>) -> io::Result<()> {
        let mut secret = identity.filter(|_| message.device.identity).map(Identity::secret_bytes);
        secret.iter_mut().for_each(|secret| clamp(secret));
        self.talk(|socket, family| {
            let mut request = wire::set_device(family, index, message, secret.as_deref());
            let result = socket.get(&mut request, |(), _| {});
            request.wipe();
            result
        })
    }

    /// Asks WireGuard's family, with its number. That may have changed where the module was loaded anew, and may be
    /// had since the module was loaded.
    fn talk<T>(&mut self, mut ask: impl FnMut(&mut Socket<W>, u16) -> io::Result<T>) -> io::Result<T> {
        patiently(|| {
            if let Some(family) = self.family {
                match ask(&mut self.generic, family) {
                    Err(error) if errno(&error) == libc::ENOENT => {}
                    result => return result,
                }
            }
            let family = self.resolve()?;
            ask(&mut self.generic, family)
        })
    }

    fn resolve(&mut self) -> io::Result<u16> {
        let family = self.generic.get(&mut wire::get_family(), |family: &mut Option<u16>, answer| {
            *family = wire::family_of(answer);
        })?;
        self.family = family;
        family.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }
}

/// Brings a private key into the form that the kernel keeps it in (RFC 7748, section 5). It takes another form of its
/// own key for a new one, and has all sessions renewed (`wg_set_device`).
fn clamp(secret: &mut [u8; 32]) {
    secret[0] &= 0b1111_1000;
    secret[31] &= 0b0111_1111;
    secret[31] |= 0b0100_0000;
}

/// A key that nobody has the other half of.
fn decoy() -> Removal {
    let mut key = [0; 32];
    OsRng.fill_bytes(&mut key);
    Removal::Decoy(key)
}

/// Whether a port is to be had, over both address families.
fn try_port(port: u16) -> io::Result<()> {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if errno(&error) != libc::EADDRINUSE => {
            // IPv6 is switched off.
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop)
        }
        result => result.map(drop),
    }
}

/// What makes an error for the operator of the kernel's: `action` is a verb, and `interface` what it is done to.
fn refused(action: &'static str, interface: &str) -> impl Fn(io::Error) -> WireguardError {
    move |source| WireguardError::refused(action, interface, source)
}
