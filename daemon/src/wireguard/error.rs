//! What the kernel's error numbers mean here, and what the operator can do.

use std::io;

use netlink_packet_core::DecodeError;
use nix::libc;
use warren_api::PublicKey;

use super::link::Link;

/// Why the kernel's WireGuard could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum WireguardError {
    /// A netlink socket cannot be opened.
    #[error("a netlink socket could not be opened")]
    Open(#[source] io::Error),
    /// There is no WireGuard.
    #[error(
        "the kernel has no WireGuard: load the module wireguard (`modprobe wireguard`), or use --backend userspace"
    )]
    Missing,
    /// The right is missing.
    #[error("the kernel refused to {action} {interface}: warrend needs the capability NET_ADMIN")]
    NotPermitted {
        /// What was to be done.
        action: &'static str,
        /// Of which interface.
        interface: String,
    },
    /// Somebody else has the interface's name.
    #[error(
        "interface {interface} is {what} and not Warren's; it is left alone. Rename it or take it away (`ip link delete \
             {interface}`), and Warren makes its own"
    )]
    Foreign {
        /// The name.
        interface: String,
        /// What it is.
        what: String,
    },
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// Somebody else listens on the tunnel's port.
    #[error("UDP port {port} is taken: see who has it with `ss -lunp`, or choose another with --listen-port")]
    PortTaken {
        /// Which port.
        port: u16,
    },
    /// Some peers were refused; the others are configured.
    #[error("the kernel refused the peer {peer}{}: see what its node announces with `keyctl status`", and_more(*.more))]
    PeerRefused {
        /// The first of them.
        peer: PublicKey,
        /// How many more there are.
        more: usize,
        /// Why.
        source: io::Error,
    },
    /// The kernel is out of memory.
    #[error(
        "the kernel had no memory to {action} {interface}: see what uses it up with `slabtop`; this is tried again"
    )]
    NoMemory {
        /// What was to be done.
        action: &'static str,
        /// Of which interface.
        interface: String,
        /// What it said.
        source: io::Error,
    },
    /// Something was refused for another reason.
    #[error("the kernel refused to {action} {interface}")]
    Refused {
        /// What was to be done.
        action: &'static str,
        /// Of which interface.
        interface: String,
        /// Why not.
        source: io::Error,
    },
    /// An answer of the kernel makes no sense.
    #[error("what the kernel says of the device {interface} cannot be understood")]
    Answer {
        /// Which device.
        interface: String,
        /// Why.
        source: DecodeError,
    },
}

impl WireguardError {
    /// Somebody else's interface.
    pub(super) fn foreign(link: &Link) -> Self {
        let what = match link.kind.as_deref() {
            // One of the userspace backend is Warren's, too, but no matter of this adapter.
            Some("tun") => "a TUN device (`warren-tunnel` makes such ones)".to_owned(),
            Some(_) if link.is_wireguard() => "somebody's WireGuard".to_owned(),
            Some(kind) => format!("somebody's {kind} interface"),
            None => "somebody's interface".to_owned(),
        };
        Self::Foreign { interface: link.name.clone(), what }
    }

    /// What the kernel refused to do: `action`, a verb for the interface.
    pub(super) fn refused(action: &'static str, interface: &str, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match errno(&source) {
            libc::EPERM | libc::EACCES => Self::NotPermitted { action, interface },
            libc::ENODEV => Self::NoInterface(interface),
            libc::ENOBUFS | libc::ENOMEM => Self::NoMemory { action, interface, source },
            // The answers to a kind of interface and to a family of netlink that the kernel does not know.
            libc::EOPNOTSUPP | libc::ENOENT => Self::Missing,
            libc::EEXIST => Self::Foreign { interface, what: "somebody's, made just now,".to_owned() },
            _ => Self::Refused { action, interface, source },
        }
    }
}

/// The number of an error of the kernel's, 0 for others.
pub fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" and {more} more") }
}
