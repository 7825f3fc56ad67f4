//! WireGuard's interfaces as links: found, made, and taken away (rtnetlink(7)).
//!
//! An interface is Warren's if it is a WireGuard and says so in its alias. The kernel takes no alias with the request
//! that makes an interface, so it is made under another name and gets its own when it has the alias: however the
//! daemon ends, an interface of Warren's name is either Warren's, or somebody else's.

use std::io;

use nix::libc;
use warren_api::names::{self, ALIAS};

use crate::netlink::{Request, Socket, Wire, attributes, u32_at};

/// The kind of WireGuard's interfaces.
pub const KIND: &str = "wireguard";

/// `struct ifinfomsg`: family, padding, type (16 bits), number, flags and a mask of flags (32 bits each).
const IFINFOMSG: usize = 16;

/// `RTEXT_FILTER_SKIP_STATS` for `IFLA_EXT_MASK`: counters are not wanted.
const SKIP_STATS: u32 = 1 << 3;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, where it has a kind: an Ethernet card has none.
    pub kind: Option<String>,
    /// What somebody wrote on it.
    pub alias: Option<String>,
    /// Whether it is up.
    pub up: bool,
}

impl Link {
    /// Whether it is a WireGuard.
    pub fn is_wireguard(&self) -> bool {
        self.kind.as_deref() == Some(KIND)
    }

    /// Whether Warren made it.
    pub fn is_ours(&self) -> bool {
        self.is_wireguard() && self.alias.as_deref() == Some(ALIAS)
    }

    /// Whether it was to become a tunnel or a probe, and its maker died.
    pub fn is_left_behind(&self) -> bool {
        let number = self.name.strip_prefix(names::INTERFACE_PREFIX).unwrap_or_default();
        self.is_ours() && number.len() == 8 && number.bytes().all(|digit| digit.is_ascii_hexdigit())
    }
}

/// A name that no interface has: as long as a name may be.
pub fn throwaway_name(random: u32) -> String {
    format!("{}{random:08x}", names::INTERFACE_PREFIX)
}

/// The interface of a name, if there is one.
pub fn find(socket: &mut Socket<impl Wire>, name: &str) -> io::Result<Option<Link>> {
    let mut request = Request::new(libc::RTM_GETLINK, 0, &[0; IFINFOMSG]);
    request.put(libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    request.put_name(libc::IFLA_IFNAME, name);
    match socket.get(&mut request, |found: &mut Option<Link>, message| *found = parse(message)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        result => result,
    }
}

/// All interfaces.
pub fn list(socket: &mut Socket<impl Wire>) -> io::Result<Vec<Link>> {
    let mut request = Request::new(libc::RTM_GETLINK, 0, &[0; IFINFOMSG]);
    request.put(libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    socket.dump(&mut request, |links: &mut Vec<Link>, message| links.extend(parse(message)))
}

/// Makes a WireGuard interface and marks it as Warren's, in one call.
pub fn create(socket: &mut Socket<impl Wire>, name: &str) -> io::Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut new = Request::new(libc::RTM_NEWLINK, flags, &[0; IFINFOMSG]);
    new.put_name(libc::IFLA_IFNAME, name);
    new.nest(libc::IFLA_LINKINFO, |info| info.put_name(libc::IFLA_INFO_KIND, KIND));
    let mut mark = Request::new(libc::RTM_SETLINK, 0, &[0; IFINFOMSG]);
    mark.put_name(libc::IFLA_IFNAME, name);
    mark.put(libc::IFLA_IFALIAS, ALIAS.as_bytes());
    let mut refused = socket.transact(&mut [new, mark], 1)?;
    refused.sort_by_key(|(index, _)| *index);
    refused.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Gives an interface, which must be down, another name.
pub fn rename(socket: &mut Socket<impl Wire>, index: u32, name: &str) -> io::Result<()> {
    let mut request = Request::new(libc::RTM_SETLINK, 0, &numbered(index));
    request.put_name(libc::IFLA_IFNAME, name);
    socket.get(&mut request, |(), _| {})
}

/// Removes an interface; one that is gone is removed.
pub fn delete(socket: &mut Socket<impl Wire>, index: u32) -> io::Result<()> {
    let mut request = Request::new(libc::RTM_DELLINK, 0, &numbered(index));
    match socket.get(&mut request, |(), _| {}) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

fn numbered(index: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn parse(message: &[u8]) -> Option<Link> {
    let up = u32_at(message, 8)? & libc::IFF_UP as u32 != 0;
    let mut link = Link { index: u32_at(message, 4)?, name: String::new(), kind: None, alias: None, up };
    for (kind, value) in attributes(message.get(IFINFOMSG..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_IFALIAS => link.alias = Some(text(value)),
            libc::IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link)
}

/// Text of the kernel, which ends in a zero byte where it is a name.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}
