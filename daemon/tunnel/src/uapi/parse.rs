//! Text to types, with every line checked before anything is returned.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::{
    AllowedIpChange, DROPPED, DeviceState, DeviceUpdate, FALLBACK, PeerState, PeerUpdate, SecretKey,
};

/// What is wrong with a text of the configuration protocol. Lines count from 1. Values are never shown,
/// because they may be keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// A line is not of the form `key=value`.
    #[error("line {line}: expected key=value")]
    NotKeyValue {
        /// Which line.
        line: usize,
    },
    /// No such key exists, or not in this place (a device's key after the first `public_key`, say).
    #[error("line {line}: the key {key} is unknown here")]
    UnknownKey {
        /// Which line.
        line: usize,
        /// The key, if it looks like one.
        key: String,
    },
    /// The key is known, its value is malformed.
    #[error("line {line}: {key} wants {wants}")]
    BadValue {
        /// Which line.
        line: usize,
        /// The key.
        key: &'static str,
        /// What would have been right.
        wants: &'static str,
    },
    /// There is text behind the empty line that ends a block.
    #[error("line {line}: text follows the closing empty line")]
    Trailing {
        /// Which line.
        line: usize,
    },
    /// The other side answered with this error.
    #[error("the WireGuard program refused: {}", Errno::from_raw(*.0).desc())]
    Refused(
        /// A number of `errno.h`.
        i32,
    ),
    /// The answer has no `errno` line.
    #[error("the answer ends without errno")]
    NoErrno,
}

impl UapiError {
    /// The number of `errno.h` that says the same, positive. On the wire wireguard-go, and so we, negate
    /// it; clients take either sign.
    pub fn errno(&self) -> i32 {
        match self {
            Self::UnknownKey { .. } | Self::BadValue { .. } => Errno::EINVAL as i32,
            Self::NotKeyValue { .. } | Self::Trailing { .. } | Self::NoErrno => Errno::EPROTO as i32,
            Self::Refused(errno) => *errno,
        }
    }
}

impl DeviceUpdate {
    /// Reads a `set` request: the lines after `set=1` (which may itself be there), up to and with the
    /// closing empty line (which may be absent).
    ///
    /// # Errors
    /// The first line that is malformed; nothing of the request is then usable.
    pub fn parse(body: &str) -> Result<Self, UapiError> {
        let mut update = Self::default();
        for (index, line) in Lines::new(body).enumerate() {
            let line = line?;
            match line.key {
                "set" if index == 0 => line.expect("set", "1")?,
                "public_key" => update.peers.push(PeerUpdate::new(*line.public_key()?)),
                _ => match update.peers.last_mut() {
                    None => update.device_line(&line)?,
                    Some(peer) => peer.line(&line)?,
                },
            }
        }
        Ok(update)
    }

    fn device_line(&mut self, line: &Line<'_>) -> Result<(), UapiError> {
        match line.key {
            "private_key" => self.private_key = Some(line.secret("private_key")?),
            "listen_port" => self.listen_port = Some(line.number("listen_port", "a port, 0 to 65535")?),
            "fwmark" => self.fwmark = Some(line.number("fwmark", "a number of 32 bits")?),
            "replace_peers" => {
                line.expect("replace_peers", "true")?;
                self.replace_peers = true;
            }
            _ => return Err(line.unknown()),
        }
        Ok(())
    }
}

impl PeerUpdate {
    fn line(&mut self, line: &Line<'_>) -> Result<(), UapiError> {
        match line.key {
            "remove" => {
                line.expect("remove", "true")?;
                self.remove = true;
            }
            "update_only" => {
                line.expect("update_only", "true")?;
                self.update_only = true;
            }
            "preshared_key" => self.preshared_key = Some(line.secret("preshared_key")?),
            "endpoint" => self.endpoint = Some(line.endpoint()?),
            "persistent_keepalive_interval" => self.persistent_keepalive = Some(line.keepalive()?),
            "warren_lanes" => self.lanes = Some(line.lanes()?),
            "replace_allowed_ips" => {
                line.expect("replace_allowed_ips", "true")?;
                self.replace_allowed_ips = true;
            }
            "allowed_ip" => self.allowed_ips.push(match line.value.strip_prefix('-') {
                Some(net) => AllowedIpChange::remove(line.net(net)?),
                None => AllowedIpChange::add(line.net(line.value)?),
            }),
            "protocol_version" => line.expect("protocol_version", "1")?,
            _ => return Err(line.unknown()),
        }
        Ok(())
    }
}

impl DeviceState {
    /// Reads the answer to `get=1`. Unknown keys are skipped, as wg(8) does, so that newer programs can
    /// say more.
    ///
    /// # Errors
    /// [`UapiError::Refused`] if the answer says so, otherwise the first malformed line.
    pub fn parse(reply: &str) -> Result<Self, UapiError> {
        let mut state = Self::default();
        let mut errno = None;
        for line in Lines::new(reply) {
            let line = line?;
            match line.key {
                "errno" => errno = Some(line.errno()?),
                "public_key" => state.peers.push(PeerState::new(*line.public_key()?)),
                _ => match state.peers.last_mut() {
                    None => state.device_line(&line)?,
                    Some(peer) => peer.line(&line)?,
                },
            }
        }
        match errno {
            Some(0) => Ok(state),
            Some(errno) => Err(UapiError::Refused(errno)),
            None => Err(UapiError::NoErrno),
        }
    }

    fn device_line(&mut self, line: &Line<'_>) -> Result<(), UapiError> {
        match line.key {
            "private_key" => self.private_key = some_key(line.secret("private_key")?),
            "listen_port" => self.listen_port = line.number("listen_port", "a port, 0 to 65535")?,
            "fwmark" => self.fwmark = line.number("fwmark", "a number of 32 bits")?,
            key => {
                let groups = [(DROPPED, &mut self.dropped), (FALLBACK, &mut self.fallbacks)];
                for (group, counts) in groups {
                    if let Some(name) = key.strip_prefix(group) {
                        counts.insert(name.to_owned(), line.number(group, "a number of 64 bits")?);
                    }
                }
            }
        }
        Ok(())
    }
}

impl PeerState {
    fn line(&mut self, line: &Line<'_>) -> Result<(), UapiError> {
        match line.key {
            "preshared_key" => self.preshared_key = some_key(line.secret("preshared_key")?),
            "endpoint" => self.endpoint = Some(line.endpoint()?),
            "last_handshake_time_sec" => {
                let seconds = line.number("last_handshake_time_sec", "seconds since 1970")?;
                self.set_last_handshake(seconds, self.last_handshake.unwrap_or_default().subsec_nanos());
            }
            "last_handshake_time_nsec" => {
                let nanos: u32 = line.number("last_handshake_time_nsec", NANOSECONDS)?;
                if nanos >= 1_000_000_000 {
                    return Err(line.bad("last_handshake_time_nsec", NANOSECONDS));
                }
                self.set_last_handshake(self.last_handshake.unwrap_or_default().as_secs(), nanos);
            }
            "rx_bytes" => self.rx_bytes = line.number("rx_bytes", "a number of 64 bits")?,
            "tx_bytes" => self.tx_bytes = line.number("tx_bytes", "a number of 64 bits")?,
            "persistent_keepalive_interval" => self.persistent_keepalive = line.keepalive()?,
            "warren_lanes" => self.lanes = line.lanes()?,
            "allowed_ip" => self.allowed_ips.push(line.net(line.value)?),
            _ => {}
        }
        Ok(())
    }

    /// The two halves of the time come on two lines; both zero mean that there was no handshake.
    fn set_last_handshake(&mut self, seconds: u64, nanos: u32) {
        self.last_handshake = Some(Duration::new(seconds, nanos)).filter(|time| !time.is_zero());
    }
}

/// Reads the answer to `set=1`.
pub(super) fn parse_set_reply(reply: &str) -> Result<(), UapiError> {
    // A `set` answer is that of a `get` with nothing but the errno.
    DeviceState::parse(reply).map(drop)
}

const NANOSECONDS: &str = "nanoseconds below a second";

/// All zeros are the protocol's way to say that there is no key.
fn some_key(key: SecretKey) -> Option<SecretKey> {
    (*key != [0; 32]).then_some(key)
}

/// The lines of one block, up to the empty line that closes it.
struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Split<'a, char>>,
    closed: bool,
}

impl<'a> Lines<'a> {
    fn new(block: &'a str) -> Self {
        Self { lines: block.split('\n').enumerate(), closed: false }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, UapiError>;

    fn next(&mut self) -> Option<Self::Item> {
        for (index, text) in self.lines.by_ref() {
            let number = index + 1;
            if text.is_empty() {
                self.closed = true;
            } else if self.closed {
                return Some(Err(UapiError::Trailing { line: number }));
            } else {
                return Some(match text.split_once('=') {
                    Some((key, value)) => Ok(Line { number, key, value }),
                    None => Err(UapiError::NotKeyValue { line: number }),
                });
            }
        }
        None
    }
}

/// One `key=value` line.
struct Line<'a> {
    /// Counted from 1.
    number: usize,
    key: &'a str,
    value: &'a str,
}

impl Line<'_> {
    fn unknown(&self) -> UapiError {
        // What does not look like a key of the protocol may be a secret in the wrong place.
        let looks_like_key =
            self.key.len() <= 40 && self.key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let key = if looks_like_key { self.key } else { "(not shown)" };
        UapiError::UnknownKey { line: self.number, key: key.to_owned() }
    }

    fn bad(&self, key: &'static str, wants: &'static str) -> UapiError {
        UapiError::BadValue { line: self.number, key, wants }
    }

    fn expect(&self, key: &'static str, value: &'static str) -> Result<(), UapiError> {
        if self.value == value { Ok(()) } else { Err(self.bad(key, value)) }
    }

    fn number<N: FromStr>(&self, key: &'static str, wants: &'static str) -> Result<N, UapiError> {
        // `FromStr` of numbers takes a plus sign, the protocol does not.
        if self.value.starts_with('+') {
            return Err(self.bad(key, wants));
        }
        self.value.parse().map_err(|_| self.bad(key, wants))
    }

    fn keepalive(&self) -> Result<u16, UapiError> {
        self.number("persistent_keepalive_interval", "seconds, 0 to 65535")
    }

    fn lanes(&self) -> Result<u16, UapiError> {
        let wants = "a number of lanes, 1 to 65535";
        let lanes = self.number("warren_lanes", wants)?;
        if lanes == 0 { Err(self.bad("warren_lanes", wants)) } else { Ok(lanes) }
    }

    /// wireguard-go answers with negative numbers, others with positive ones; both mean the same error.
    fn errno(&self) -> Result<i32, UapiError> {
        let errno: i32 = self.number("errno", "a number of errno.h")?;
        errno.checked_abs().ok_or_else(|| self.bad("errno", "a number of errno.h"))
    }

    fn public_key(&self) -> Result<SecretKey, UapiError> {
        self.secret("public_key")
    }

    fn secret(&self, key: &'static str) -> Result<SecretKey, UapiError> {
        let mut bytes = Zeroizing::new([0; 32]);
        let digits = self.value.as_bytes();
        let ok = digits.len() == 64
            && bytes.iter_mut().zip(digits.chunks_exact(2)).all(|(byte, pair)| {
                match (char::from(pair[0]).to_digit(16), char::from(pair[1]).to_digit(16)) {
                    (Some(high), Some(low)) => {
                        *byte = (high << 4 | low) as u8;
                        true
                    }
                    _ => false,
                }
            });
        if ok { Ok(bytes) } else { Err(self.bad(key, "64 hexadecimal digits")) }
    }

    fn net(&self, text: &str) -> Result<IpNet, UapiError> {
        let net: IpNet = text.parse().map_err(|_| self.bad("allowed_ip", "ADDRESS/LENGTH"))?;
        Ok(net.trunc())
    }

    fn endpoint(&self) -> Result<SocketAddr, UapiError> {
        let wants = "ADDRESS:PORT or [ADDRESS]:PORT";
        if let Ok(endpoint) = self.value.parse() {
            return Ok(endpoint);
        }
        // wg(8) writes the zone of a link-local address as the interface's name, which only the system
        // can turn into its number.
        scoped_endpoint(self.value).ok_or_else(|| self.bad("endpoint", wants))
    }
}

/// `[fe80::1%eth0]:51820`
fn scoped_endpoint(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.strip_prefix('[')?.split_once("]:")?;
    let (address, zone) = host.split_once('%')?;
    let IpAddr::V6(address) = address.parse().ok()? else { return None };
    let scope = NonZeroU32::new(nix::net::if_::if_nametoindex(zone).ok()?)?;
    Some(SocketAddrV6::new(address, port.parse().ok()?, 0, scope.get()).into())
}
