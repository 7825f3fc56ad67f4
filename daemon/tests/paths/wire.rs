//! Other links than a lab's own: smaller ones, and routers on the way.

use std::net::IpAddr;

use anyhow::Result;
use warren_testkit::lab::{Lab, host};
use warren_testkit::netns::Netns;

/// Gives a node's own link another MTU, at both ends.
pub fn resize(lab: &Lab, node: usize, mtu: u32) -> Result<()> {
    let node = lab.node(node);
    node.netns.ip(&format!("link set eth0 mtu {mtu}"))?;
    lab.underlay.ip(&format!("link set {} mtu {mtu}", node.name))
}

/// Two routers between the last node and all others, which notice nothing: the routers answer for those behind them.
///
/// ```text
///   node-1 …── underlay ──eth0 west middle ─── middle east node-2 ──eth0 node-2
///        (the plan's MTU)                (narrow)        (the plan's MTU)
/// ```
pub struct Detour {
    pub west: Netns,
    pub east: Netns,
}

/// Where the routers' own addresses are, in the underlay's networks.
const WEST: usize = 241;
const EAST: usize = 242;

impl Detour {
    /// Builds them on the way to the last node, with a link of `mtu` bytes between.
    pub fn new(lab: &Lab, mtu: u32) -> Result<Self> {
        let plan = &lab.plan;
        let (west, east) = (Netns::new("west")?, Netns::new("east")?);
        for router in [&west, &east] {
            router.sysctl(&[
                ("net.ipv4.ip_forward", "1"),
                ("net.ipv6.conf.all.forwarding", "1"),
                ("net.ipv4.conf.all.rp_filter", "0"),
                ("net.ipv4.conf.default.rp_filter", "0"),
                ("net.ipv6.conf.default.accept_dad", "0"),
                ("net.ipv4.conf.default.proxy_arp", "1"),
                ("net.ipv6.conf.default.proxy_ndp", "1"),
                ("net.ipv6.conf.all.proxy_ndp", "1"),
            ])?;
        }
        let last = &lab.nodes[lab.nodes.len() - 1];
        let port = &last.name;
        let outside = plan.mtu;
        west.ip(&format!(
            "link add eth0 mtu {outside} type veth peer name west mtu {outside} netns {}\n\
             link set eth0 up\n\
             link add middle mtu {mtu} type veth peer name middle mtu {mtu} netns {}\n\
             link set middle up\naddress add fe80::1/64 dev middle nodad",
            lab.underlay.name(),
            east.name(),
        ))?;
        lab.underlay
            .ip(&format!("link set west master underlay up\nlink set {port} netns {}", east.name()))?;
        east.ip(&format!("link set {port} up\nlink set middle up\naddress add fe80::2/64 dev middle nodad"))?;
        // Answers in place of others wait 0.8 s by default, so that these come first.
        west.sysctl(&delays("eth0").each_ref().map(|(name, value)| (name.as_str(), *value)))?;
        east.sysctl(&delays(port).each_ref().map(|(name, value)| (name.as_str(), *value)))?;

        let detour = Self { west, east };
        let cidrs = plan.node_cidrs();
        for (router, link, number) in [(&detour.west, "eth0", WEST), (&detour.east, port, EAST)] {
            for cidr in &cidrs {
                router.ip(&format!("address add {} dev {link}", host(*cidr, number)))?;
            }
        }
        for node in &lab.nodes {
            let behind = std::ptr::eq(node, last);
            let pods = node.pod_cidrs.iter().filter(|cidr| plan.has_clear_path(cidr.addr()));
            let pods: Vec<_> = pods.map(|cidr| (cidr.to_string(), cidr.addr())).collect();
            for ip in &node.ips {
                detour.lead(&ip.to_string(), *ip, None, port, behind)?;
                let (asked, link) =
                    if behind { (&detour.west, "eth0") } else { (&detour.east, port.as_str()) };
                if ip.is_ipv6() {
                    asked.ip(&format!("neighbour add proxy {ip} dev {link}"))?;
                }
            }
            for (cidr, address) in pods {
                let via = node.ips.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()).or(node.ips.first());
                detour.lead(&cidr, address, via, port, behind)?;
            }
        }
        Ok(detour)
    }

    /// Routes to what is behind the eastern router, or to what is not; from the nearer one by `via`.
    fn lead(&self, to: &str, address: IpAddr, via: Option<&IpAddr>, port: &str, behind: bool) -> Result<()> {
        let (near, link, far, across) = match behind {
            true => (&self.east, port, &self.west, "fe80::2"),
            false => (&self.west, "eth0", &self.east, "fe80::1"),
        };
        let family = |address: &IpAddr| if address.is_ipv4() { "inet" } else { "inet6" };
        let via = via.map(|via| format!("via {} {via}", family(via))).unwrap_or_default();
        near.ip(&format!("route add {to} {via} dev {link}"))?;
        let across = if address.is_ipv4() { format!("inet6 {across}") } else { across.to_owned() };
        far.ip(&format!("route add {to} via {across} dev middle"))
    }

    /// Gives the link between the routers another MTU.
    pub fn resize(&self, mtu: u32) -> Result<()> {
        self.west.ip(&format!("link set middle mtu {mtu}"))?;
        self.east.ip(&format!("link set middle mtu {mtu}"))
    }

    /// Has both routers tell nobody what is too large.
    pub fn silence(&self) -> Result<()> {
        for router in [&self.west, &self.east] {
            router.nft(
                "table inet silence {\nchain output {\ntype filter hook output priority 0;\n\
                 icmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n}\n}\n",
            )?;
        }
        Ok(())
    }
}

fn delays(link: &str) -> [(String, &'static str); 2] {
    [4, 6].map(|n| (format!("net.ipv{n}.neigh.{link}.proxy_delay"), "0"))
}
