//! A lab with Warren in it, a client outside, and what all scenarios ask of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use warren_testkit::capture::{Capture, Report};
use warren_testkit::lab::{Lab, Node, Plan, Pod, WarrendOptions};
use warren_testkit::netns::Netns;
use warren_testkit::traffic::ping::{Flood, Ping};
use warren_testkit::wait;

use crate::exchange::{BOTH, Server, exchange};
use crate::kube_proxy::{POD_PORT, SERVICE_CIDRS};

/// The API server's port in these labs, other than the default, so that nobody forgets that it can be another.
pub const API_PORT: u16 = 7443;

/// What an operator broke is to be whole again after this time.
pub const REPAIR: Duration = Duration::from_secs(5);

/// The time between two pings of a flood, [`wait::patient`].
const BEAT: Duration = Duration::from_millis(4);

/// A lab and a capture of what passes between its nodes.
pub struct Town {
    pub lab: Lab,
    pub capture: Capture,
    /// Whether all that nodes send each other has to be encrypted.
    hosts: bool,
}

/// Builds a lab without Warren, with strict reverse-path filters, as some distributions have them, and a gateway; its
/// attacker is a client outside of the cluster. With `hosts`, the capture takes all that nodes send each other for
/// clear text. A scenario that fails shows the end of all logs.
pub fn in_town(plan: Plan, hosts: bool, scenario: impl FnOnce(&Town) -> Result<()>) -> Result<()> {
    let lab = Lab::new(plan)?;
    for node in &lab.nodes {
        let all = [("net.ipv4.conf.all.rp_filter", "1")];
        node.netns.sysctl(&all)?;
        for gateway in lab.plan.attacker_ips() {
            node.netns.ip(&format!("route add default via {gateway}"))?;
        }
    }
    let capture = lab.capture_inside(hosts)?;
    let town = Town { lab, capture, hosts };
    scenario(&town).with_context(|| town.lab.logs())
}

impl Town {
    pub fn node(&self, number: usize) -> &Node {
        self.lab.node(number)
    }

    /// The pod `pod` of the node `node`, both from 1.
    pub fn pod(&self, node: usize, pod: usize) -> &Pod {
        &self.node(node).pods[pod - 1]
    }

    /// The machine outside of the cluster.
    pub fn client(&self) -> &Netns {
        &self.lab.attacker
    }

    /// Starts warrend everywhere with these arguments besides, and waits for the mesh.
    pub fn start(&self, extra: &[&str]) -> Result<()> {
        self.lab.start_all(&options(extra))?;
        self.await_up()
    }

    /// Waits until every node is ready and has shaken hands with every other.
    pub fn await_up(&self) -> Result<()> {
        wait::until("the mesh", Duration::from_secs(20), || {
            self.lab.nodes.iter().try_for_each(|node| {
                node.ready()?;
                let status = node.status()?;
                for other in self.lab.nodes.iter().filter(|other| other.name != node.name) {
                    let peer = status.peers.iter().find(|peer| peer.node == other.name);
                    let peer = peer.with_context(|| format!("{} does not know {}", node.name, other.name))?;
                    peer.handshake_age
                        .with_context(|| format!("{} has not shaken hands with {}", node.name, other.name))?;
                }
                Ok(())
            })
        })
    }

    /// Does something, and fails if anything between nodes was in the clear meanwhile, or if fewer than `frames` of
    /// it were encrypted.
    pub fn encrypted<T>(&self, frames: u64, act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.silent()?;
        let value = act()?;
        let report = self.silent()?;
        ensure!(report.wireguard_data >= frames, "{frames} frames at least were to be encrypted: {report:?}");
        Ok(value)
    }

    /// Does something, and fails if none of it was seen in the clear between nodes: the positive control.
    pub fn in_the_clear<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.capture.reset()?;
        let value = act()?;
        let report = self.capture.reset()?;
        ensure!(report.clear > 0 && report.dropped == 0, "the capture saw nothing in the clear: {report:?}");
        Ok(value)
    }

    /// Fails if anything was in the clear between nodes since the last look.
    pub fn silent(&self) -> Result<Report> {
        let report = self.capture.reset()?;
        report.no_clear_text()?;
        ensure!(!self.hosts || report.fragments == 0, "fragments: {report:?}");
        Ok(report)
    }
}

/// How warrend is started here: told of the Services, and of the API server's port.
pub fn options(extra: &[&str]) -> WarrendOptions {
    let mut arguments = vec!["--service-cidrs".to_owned(), SERVICE_CIDRS.join(",")];
    arguments.extend(["--api-server-port".to_owned(), API_PORT.to_string()]);
    arguments.extend(extra.iter().map(|word| (*word).to_owned()));
    WarrendOptions { extra: arguments, ..WarrendOptions::default() }
}

/// What a pod serves at its address of the family of `like`.
pub fn served_by(pod: &Pod, like: IpAddr) -> Server<'_> {
    let ip = pod.ips.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4());
    Server { netns: &pod.netns, at: SocketAddr::new(ip.expect("both families"), POD_PORT) }
}

/// What a program in the node's own namespace serves at an address of the node.
pub fn served_by_node(node: &Node, ip: IpAddr, port: u16) -> Server<'_> {
    Server { netns: &node.netns, at: SocketAddr::new(ip, port) }
}

/// TCP, UDP and pings from inside `from` to an address of `node`.
pub fn reach_node(from: &Netns, node: &Node, ip: IpAddr) -> Result<()> {
    for protocol in BOTH {
        let server = served_by_node(node, ip, 9000);
        exchange(protocol, from, server.at, &server)?;
    }
    ping(from, ip)
}

/// Three pings, all answered, in one of a few tries: while both ends of a tunnel begin handshakes at once, WireGuard
/// may lose a packet.
pub fn ping(from: &Netns, to: IpAddr) -> Result<()> {
    wait::until(&format!("answers from {to} to {}", from.name()), Duration::from_secs(2), || {
        Ping { count: 3, ..Ping::default() }.run(from, to)?.complete()
    })
}

/// No answer to pings, which may fail to be sent at all.
pub fn no_ping(from: &Netns, to: IpAddr) -> Result<()> {
    let patience = Duration::from_millis(100);
    let ping = Ping { count: 3, interval: wait::patient(BEAT), patience, ..Ping::default() };
    match ping.run(from, to) {
        Ok(answers) if answers.received > 0 => bail!("{} reached {to}: {answers}", from.name()),
        Err(error) if !format!("{error:#}").contains("ping: connect:") => Err(error),
        _ => Ok(()),
    }
}

/// Pings that go on, from one to each of several addresses.
pub fn floods(directions: &[(&Netns, IpAddr)]) -> Result<Vec<Flood>> {
    directions.iter().map(|(from, to)| Flood::start(from, *to, wait::patient(BEAT))).collect()
}

/// Ends floods; returns how many pings were sent, and which were lost on the way where.
pub fn lost(floods: Vec<Flood>) -> Result<(u32, Vec<String>)> {
    let (mut sent, mut lost) = (0, Vec::new());
    for flood in floods {
        let what = flood.to_string();
        let answers = flood.stop()?;
        sent += answers.sent;
        if !answers.missing.is_empty() {
            lost.push(format!("{what}: {:?} of {}", answers.missing, answers.sent));
        }
    }
    Ok((sent, lost))
}

/// Two nodes with two pods each.
pub fn two_nodes() -> Plan {
    Plan { nodes: 2, ..Plan::default() }
}
