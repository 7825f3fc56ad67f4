//! What kube-proxy puts on a node for Services, in each of its modes, reduced to what changes packets: chains, marks
//! and order are those of kube-proxy 1.32 (pkg/proxy/iptables/proxier.go, pkg/proxy/nftables/proxier.go).

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use warren_testkit::lab::{Lab, Node};
use warren_testkit::process;

/// Where the Services' addresses come from.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// The port of every Service at its own address, and that on which pods serve it.
const PORT: u16 = 80;
pub const POD_PORT: u16 = 8080;

/// The mark of what is to be masqueraded (`iptables.masqueradeBit`, 14), and that of what is to be dropped, which the
/// kubelet's rules do.
pub const MASQUERADE: u32 = 0x4000;
pub const DROP: u32 = 0x8000;

/// Who writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Mode `iptables` with the program of one of both back ends.
    Iptables(&'static str),
    /// Mode `nftables`.
    Nftables,
}

pub const MODES: [Mode; 3] = [Mode::Iptables("nft"), Mode::Iptables("legacy"), Mode::Nftables];

/// Who serves a Service.
#[derive(Debug, Clone, Copy)]
pub enum Endpoint {
    /// The pod `.1` of the node `.0`, both from 1, at [`POD_PORT`].
    Pod(usize, usize),
    /// A program in a node's own namespace, at this port.
    Host(usize, u16),
}

/// A Service of type NodePort, TCP and UDP.
#[derive(Debug, Clone)]
pub struct Service {
    /// Tells it from others.
    pub number: u16,
    /// Who serves it.
    pub endpoints: Vec<Endpoint>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
}

impl Service {
    /// Its address and port of the family of `like`.
    pub fn cluster_ip(&self, like: IpAddr) -> SocketAddr {
        let ip = match like {
            IpAddr::V4(_) => IpAddr::from([10, 96, 0, self.number as u8]),
            IpAddr::V6(_) => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, self.number]),
        };
        SocketAddr::new(ip, PORT)
    }

    /// Its port on every node.
    pub fn node_port(&self) -> u16 {
        30000 + self.number
    }
}

/// Writes all rules of a node, over those of before.
pub fn install(mode: Mode, lab: &Lab, node: &Node, services: &[Service]) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let family = View { family, lab, node, services };
        match mode {
            Mode::Iptables(backend) => {
                let program = format!("ip{}tables-{backend}-restore", family.six());
                process::output_with_input(&mut node.netns.command(&program), &family.iptables())
                    .with_context(|| format!("{program} on {}", node.name))?;
            }
            Mode::Nftables => node.netns.nft(&family.nftables())?,
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// What a node needs to know, of one address family.
struct View<'a> {
    family: Family,
    lab: &'a Lab,
    node: &'a Node,
    services: &'a [Service],
}

impl View<'_> {
    fn six(&self) -> &'static str {
        if self.family == Family::V4 { "" } else { "6" }
    }

    fn has(&self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self.family == Family::V4)
    }

    fn cluster_cidr(&self) -> IpNet {
        let mut cidrs = self.lab.plan.cluster_cidrs().into_iter();
        cidrs.find(|cidr| self.has(&cidr.addr())).expect("the lab's pods have both families")
    }

    fn cluster_ip(&self, service: &Service) -> IpAddr {
        let like = self.cluster_cidr().addr();
        service.cluster_ip(like).ip()
    }

    /// Where a Service is served, all or those on this node.
    fn endpoints(&self, service: &Service, local: bool) -> Vec<SocketAddr> {
        let of = |endpoint: &Endpoint| {
            let (node, ips, port) = match *endpoint {
                Endpoint::Pod(node, pod) => (node, &self.lab.node(node).pods[pod - 1].ips, POD_PORT),
                Endpoint::Host(node, port) => (node, &self.lab.node(node).ips, port),
            };
            let ip = ips.iter().copied().find(|ip| self.has(ip))?;
            (!local || node == self.node.number).then_some(SocketAddr::new(ip, port))
        };
        service.endpoints.iter().filter_map(of).collect()
    }

    fn iptables(&self) -> String {
        let cluster = self.cluster_cidr();
        let (masquerade, drop) = (format!("{MASQUERADE:#x}"), format!("{DROP:#x}"));
        let mut chains = vec![];
        let mut rules = String::new();
        let mut rule = |text: String| {
            let _ = writeln!(rules, "-A {text}");
        };
        rule(r#"PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#.into());
        rule(r#"OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#.into());
        rule("POSTROUTING -j KUBE-POSTROUTING".into());
        rule(format!("KUBE-MARK-MASQ -j MARK --or-mark {masquerade}"));
        rule(format!("KUBE-MARK-DROP -j MARK --or-mark {drop}"));
        rule(format!("KUBE-POSTROUTING -m mark ! --mark {masquerade}/{masquerade} -j RETURN"));
        rule(format!("KUBE-POSTROUTING -j MARK --xor-mark {masquerade}"));
        rule("KUBE-POSTROUTING -j MASQUERADE --random-fully".into());
        for service in self.services {
            let number = service.number;
            let (all, external, local) =
                (format!("KUBE-SVC-{number}"), format!("KUBE-EXT-{number}"), format!("KUBE-SVL-{number}"));
            chains.extend([all.clone(), external.clone(), local.clone()]);
            for protocol in ["tcp", "udp"] {
                let ip = self.cluster_ip(service);
                rule(format!("KUBE-SERVICES -d {ip} -p {protocol} -m {protocol} --dport {PORT} -j {all}"));
                rule(format!(
                    "{all} ! -s {cluster} -d {ip} -p {protocol} -m {protocol} --dport {PORT} -j KUBE-MARK-MASQ"
                ));
                let port = service.node_port();
                rule(format!("KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {port} -j {external}"));
            }
            if service.local {
                rule(format!("{external} -s {cluster} -j {all}"));
                rule(format!("{external} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
                rule(format!("{external} -m addrtype --src-type LOCAL -j {all}"));
                rule(format!("{external} -j {local}"));
            } else {
                rule(format!("{external} -j KUBE-MARK-MASQ"));
                rule(format!("{external} -j {all}"));
            }
            for (chain, is_local) in [(&all, false), (&local, true)] {
                let endpoints = self.endpoints(service, is_local);
                if endpoints.is_empty() {
                    rule(format!("{chain} -j KUBE-MARK-DROP"));
                }
                for (index, to) in endpoints.iter().enumerate() {
                    let endpoint = format!("KUBE-SEP-{number}{}{index}", if is_local { "L" } else { "" });
                    let rest = endpoints.len() - index;
                    let chance =
                        format!("-m statistic --mode random --probability {:.10} ", 1.0 / rest as f64);
                    rule(format!("{chain} {}-j {endpoint}", if rest > 1 { &*chance } else { "" }));
                    rule(format!("{endpoint} -s {} -j KUBE-MARK-MASQ", to.ip()));
                    for protocol in ["tcp", "udp"] {
                        rule(format!("{endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {to}"));
                    }
                    chains.push(endpoint);
                }
            }
        }
        rule("KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".into());
        let own = ["SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ", "MARK-DROP"];
        let own = own.map(|name| format!("KUBE-{name}"));
        let declared = own.iter().chain(&chains).fold(String::new(), |mut text, chain| {
            let _ = writeln!(text, ":{chain} - [0:0]");
            text
        });
        format!(
            "*nat\n{declared}{rules}COMMIT\n\
             *filter\n:KUBE-FORWARD - [0:0]\n:KUBE-FIREWALL - [0:0]\n\
             -A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n-A FORWARD -j KUBE-FORWARD\n\
             -A KUBE-FIREWALL -m mark --mark {drop}/{drop} -j DROP\n\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
             -A KUBE-FORWARD -m mark --mark {masquerade}/{masquerade} -j ACCEPT\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -m mark --mark {drop}/{drop} -j DROP\n\
             COMMIT\n"
        )
    }

    fn nftables(&self) -> String {
        let cluster = self.cluster_cidr();
        let ip = if self.family == Family::V4 { "ip" } else { "ip6" };
        let address = if self.family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        let (mut chains, mut ips, mut ports) = (String::new(), vec![], vec![]);
        for service in self.services {
            let (number, port) = (service.number, service.node_port());
            for protocol in ["tcp", "udp"] {
                ips.push(format!(
                    "{} . {protocol} . {PORT} : goto service-{number}",
                    self.cluster_ip(service)
                ));
                ports.push(format!("{protocol} . {port} : goto external-{number}"));
            }
            let external = if service.local {
                format!(
                    "{ip} saddr {cluster} goto service-{number}\n\
                     fib saddr type local jump mark-for-masquerade\n\
                     fib saddr type local goto service-{number}\n\
                     goto local-{number}"
                )
            } else {
                format!("jump mark-for-masquerade\ngoto service-{number}")
            };
            let _ = writeln!(chains, "chain external-{number} {{\n{external}\n}}");
            let _ = writeln!(
                chains,
                "chain service-{number} {{\n\
                 {ip} daddr {} {ip} saddr != {cluster} jump mark-for-masquerade\n{}\n}}\n\
                 chain local-{number} {{\n{}\n}}",
                self.cluster_ip(service),
                spread(number, "", self.endpoints(service, false).len()),
                spread(number, "l", self.endpoints(service, true).len()),
            );
            for (kind, local) in [("", false), ("l", true)] {
                for (index, to) in self.endpoints(service, local).iter().enumerate() {
                    let _ = writeln!(
                        chains,
                        "chain endpoint-{number}{kind}-{index} {{\n\
                         {ip} saddr {} jump mark-for-masquerade\n\
                         meta l4proto tcp dnat to {to}\nmeta l4proto udp dnat to {to}\n}}",
                        to.ip()
                    );
                }
            }
        }
        let (ips, ports) = (ips.join(", "), ports.join(", "));
        // A chain must be declared before it is named.
        let declared: String = chains
            .lines()
            .filter(|line| line.starts_with("chain "))
            .map(|line| format!("{} }}\n", line))
            .collect();
        format!(
            "add table {ip} kube-proxy\ndelete table {ip} kube-proxy\ntable {ip} kube-proxy {{\n\
             chain mark-for-masquerade {{\nmeta mark set meta mark or {MASQUERADE:#x}\n}}\n\
             chain masquerading {{\nmeta mark & {MASQUERADE:#x} == 0 return\n\
             meta mark set meta mark xor {MASQUERADE:#x}\nmasquerade fully-random\n}}\n\
             {declared}{chains}\
             map service-ips {{ type {address} . inet_proto . inet_service : verdict; elements = {{ {ips} }} }}\n\
             map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {ports} }} }}\n\
             chain services {{\n{ip} daddr . meta l4proto . th dport vmap @service-ips\n\
             fib daddr type local meta l4proto . th dport vmap @service-nodeports\n}}\n\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n}}\n"
        )
    }
}

/// The rule that chooses among endpoints.
fn spread(number: u16, kind: &str, count: usize) -> String {
    match count {
        0 => "drop".into(),
        1 => format!("goto endpoint-{number}{kind}-0"),
        count => {
            let map: Vec<String> =
                (0..count).map(|index| format!("{index} : goto endpoint-{number}{kind}-{index}")).collect();
            format!("numgen random mod {count} vmap {{ {} }}", map.join(", "))
        }
    }
}
