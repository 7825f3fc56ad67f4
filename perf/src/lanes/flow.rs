//! One flow, as the command line names it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The packets of one protocol between two pairs of address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// On this node: a pod's, or the node's own.
    pub source: SocketAddr,
    /// On another node.
    pub destination: SocketAddr,
}

/// The protocols with ports that lanes are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Flow {
    /// The flow of the answers.
    pub fn reversed(&self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.source, self.destination)
    }
}

impl FromStr for Flow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "PROTOCOL,SOURCE:PORT,DESTINATION:PORT, as in udp,10.244.1.11:40000,10.244.2.11:53 \
                    or tcp,[fd00:1::11]:40000,[fd00:2::11]:443";
        let [protocol, source, destination] = text.split(',').collect::<Vec<_>>()[..] else {
            return Err(format!("it has the form {form}"));
        };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(format!("{other:?} is neither tcp nor udp; it has the form {form}")),
        };
        let end = |text: &str| {
            text.parse().map_err(|_| format!("{text:?} is no address with a port; it has the form {form}"))
        };
        let flow = Self { protocol, source: end(source)?, destination: end(destination)? };
        if flow.source.is_ipv4() != flow.destination.is_ipv4() {
            return Err("one of its ends has an IPv4 address, the other an IPv6 address".to_owned());
        }
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_read_and_shown() {
        let flow: Flow = "udp,10.244.1.11:40000,10.244.2.11:53".parse().unwrap();
        assert_eq!(flow.to_string(), "udp 10.244.1.11:40000 -> 10.244.2.11:53");
        assert_eq!(flow.reversed().to_string(), "udp 10.244.2.11:53 -> 10.244.1.11:40000");
        let flow: Flow = "tcp,[fd00:1::11]:40000,[fd00:2::11]:443".parse().unwrap();
        assert_eq!(flow.to_string(), "tcp [fd00:1::11]:40000 -> [fd00:2::11]:443");
    }

    #[test]
    fn what_is_no_flow_is_told() {
        for (text, why) in [
            ("", "form"),
            ("udp,10.244.1.11:40000", "form"),
            ("icmp,10.244.1.11:1,10.244.2.11:1", "neither tcp nor udp"),
            ("udp,10.244.1.11,10.244.2.11:53", "no address with a port"),
            ("udp,10.244.1.11:1,[fd00::1]:53", "IPv6"),
        ] {
            let error = text.parse::<Flow>().unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
