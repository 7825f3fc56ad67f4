//! What is done with a program, and over what.

use std::fmt;

use clap::ValueEnum;

use super::site::Network;
use crate::record::{Figures, Metric};
use crate::summary;

/// One kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// One TCP stream.
    Tcp1,
    /// One TCP stream while 200 other peers are configured and idle, and the peak of memory. Next to the one without them,
    /// which it is held against: minutes later a machine is another.
    Peers,
    /// Four TCP streams.
    Tcp4,
    /// One TCP stream from the server to the client.
    TcpReverse,
    /// One TCP stream each way at the same time.
    Bidir,
    /// UDP, 1372 bytes of payload at 300 Mbit/s: what is lost.
    Udp,
    /// UDP, 1372 bytes of payload: the highest rate with less than 0.1 % lost.
    UdpMax,
    /// UDP, 64 bytes of payload: the highest rate with less than 0.1 % lost.
    Small,
    /// Round trips of an idle tunnel.
    Rtt,
    /// Round trips beside one TCP stream.
    RttLoad,
    /// One TCP stream in VXLAN in the tunnel.
    Vxlan,
    /// One TCP stream over links of MTU 9000.
    Jumbo,
    /// One TCP stream over IPv6 in a tunnel over IPv6.
    Ipv6,
}

impl Scenario {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 13] = [
        Self::Tcp1,
        Self::Peers,
        Self::Tcp4,
        Self::TcpReverse,
        Self::Bidir,
        Self::Udp,
        Self::UdpMax,
        Self::Small,
        Self::Rtt,
        Self::RttLoad,
        Self::Vxlan,
        Self::Jumbo,
        Self::Ipv6,
    ];

    /// The network it happens in.
    pub fn network(self) -> Network {
        let usual = Network::default();
        match self {
            Self::Peers => Network { idle_peers: 200, ..usual },
            Self::Vxlan => Network { vxlan: true, ..usual },
            Self::Jumbo => Network { mtu: 9000, ..usual },
            Self::Ipv6 => Network { ipv6: true, ..usual },
            _ => usual,
        }
    }

    /// The figure that matters most, in one word or two.
    pub fn headline(self, figures: &Figures) -> String {
        let metric = summary::headline(&self.to_string());
        let unit = match metric {
            Metric::Loss => "% lost",
            Metric::Rtt => "µs",
            metric => metric.title(),
        };
        let mark = summary::mark(figures.at_least);
        figures
            .values
            .get(&metric)
            .map_or("?".into(), |value| format!("{mark}{} {unit}", metric.show(*value)))
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no variant is skipped");
        f.write_str(value.get_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_in_all_and_has_a_title() {
        assert_eq!(Scenario::value_variants(), Scenario::ALL);
        for scenario in Scenario::ALL {
            let name = scenario.to_string();
            assert_ne!(summary::title(&name), name);
        }
    }
}
