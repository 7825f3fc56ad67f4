//! What a hostile review found, each with the packets that would leak or the repair that would not come.
//!
//! All without `--cluster-cidrs` and `--node-cidrs`, which would hide half of it, and beside host-gateway
//! routes, so that what is let go leaves in the clear.

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_testkit::capture::Capture;
use warren_testkit::lab::{Backend, Lab, Node, Plan, WarrendOptions};
use warren_testkit::scenario::{self, Scenario};
use warren_testkit::traffic::{inject, udp};
use warren_testkit::wait;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a manifest that vanishes releases no pods", vanished_manifest),
    ("a manifest that is garbled releases neither pods nor the node's address", garbled_manifest),
    ("a second file with the own name releases nothing", own_name_twice),
    ("what was guarded is remembered when guard and registry are damaged at once", both_damaged),
    ("a local pod's address is not accepted from the underlay", forged_local_source),
    ("an ICMP error carries no tunnelled packet in the clear", quoted_in_the_clear),
    ("a tunnel that hangs delays no repair, and is replaced", hung_tunnel),
    ("visitors that stay stop neither probes nor repairs", idle_visitors),
];

const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 4000;

fn main() -> ExitCode {
    scenario::run(&["ip", "nft", "ping"], SCENARIOS)
}

struct Mesh {
    /// The number of the node that is in trouble.
    number: usize,
    lab: Lab,
    capture: Capture,
}

impl Mesh {
    /// Two nodes with a tunnel, without masquerading, and a proof that the sniffer would see a leak.
    fn up() -> Result<Self> {
        Self::up_around(1)
    }

    fn up_around(number: usize) -> Result<Self> {
        let lab = Lab::new(Plan { nodes: 2, pods: 2, masquerade: false, ..Plan::default() })?;
        let mesh = Self { number, capture: lab.capture()?, lab };
        mesh.provoke()?;
        ensure!(mesh.capture.reset()?.clear > 0, "without Warren nothing was seen in the clear");
        mesh.lab.start_all(&WarrendOptions { tell_cidrs: false, ..WarrendOptions::default() })?;
        wait::until("a mesh of two", SOON, || {
            for node in &mesh.lab.nodes {
                node.ready()?;
                let peers = node.status()?.peers;
                ensure!(peers.len() == 1 && peers[0].handshake_age.is_some(), "{}: {peers:?}", node.name);
            }
            Ok(())
        })
        .with_context(|| mesh.lab.logs())?;
        mesh.capture.reset()?;
        Ok(mesh)
    }

    fn node(&self) -> &Node {
        self.lab.node(self.number)
    }

    /// A pod of the node sends to the pods and to the addresses of the other.
    fn provoke(&self) -> Result<()> {
        let from = &self.node().pods[0].netns;
        let other = self.lab.node(3 - self.number);
        for to in other.pods[0].ips.iter().chain(&other.ips) {
            // Refused at once by an unreachable route is as good as dropped.
            let _ = udp::send(from, *to, PORT, "provoked");
        }
        Ok(())
    }

    /// While `condition` comes about and after it, nothing leaks.
    fn sealed_until(&mut self, what: &str, condition: impl Fn(&Node) -> Result<()>) -> Result<()> {
        wait::until(what, SOON, || {
            self.provoke()?;
            condition(self.node())
        })
        .with_context(|| self.node().log())?;
        for _ in 0..20 {
            self.provoke()?;
        }
        self.capture.reset()?.no_clear_text().with_context(|| what.to_owned())
    }
}

/// Until a node of this name is quarantined.
fn quarantined(node: &Node, name: &str) -> Result<()> {
    let found = node.status()?.quarantined;
    ensure!(found.iter().any(|q| q.node == name), "{found:?}");
    Ok(())
}

fn vanished_manifest() -> Result<()> {
    let mut mesh = Mesh::up()?;
    fs::remove_file(mesh.lab.node(2).manifest_path())?;
    mesh.sealed_until("the peer's end", |node| {
        let peers = node.status()?.peers;
        ensure!(peers.is_empty(), "{peers:?}");
        Ok(())
    })
}

fn garbled_manifest() -> Result<()> {
    for garbled in ["kind: [", "kind: Node\nmetadata: {name: node-2}\n", ""] {
        let mut mesh = Mesh::up()?;
        fs::write(mesh.lab.node(2).manifest_path(), garbled)?;
        mesh.sealed_until(&format!("the end of trust in {garbled:?}"), |node| {
            let peers = node.status()?.peers;
            ensure!(peers.is_empty(), "{peers:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn own_name_twice() -> Result<()> {
    let mut mesh = Mesh::up()?;
    let copy = mesh.lab.registry().join("copy.yaml");
    fs::copy(mesh.node().manifest_path(), &copy)?;
    mesh.sealed_until("the doubt about the own Node", |node| quarantined(node, "node-1"))?;
    fs::remove_file(copy)?;
    mesh.sealed_until("its end", Node::ready)
}

fn both_damaged() -> Result<()> {
    let mut mesh = Mesh::up()?;
    fs::write(mesh.lab.node(2).manifest_path(), "kind: [")?;
    mesh.sealed_until("the quarantine", |node| quarantined(node, "node-2"))?;
    for damage in ["insert rule inet warren in counter", "flush ruleset"] {
        mesh.node().netns.nft(damage)?;
        // Until the guard is back, nothing but routes could hold, and towards a node without a tunnel none
        // does; so the pod waits with sending.
        wait::until(&format!("the guard after {damage:?}"), SOON, || {
            let set = mesh.node().netns.sh("nft list set inet warren remote_pods4")?;
            ensure!(set.contains("10.244.2.0/24"), "{set}");
            let chain = mesh.node().netns.sh("nft list chain inet warren in")?;
            ensure!(!chain.contains("counter packets"), "the inserted rule is still there");
            Ok(())
        })?;
        mesh.sealed_until(&format!("doubt after {damage:?}"), |node| quarantined(node, "node-2"))?;
    }
    Ok(())
}

fn forged_local_source() -> Result<()> {
    let mesh = Mesh::up()?;
    let node = mesh.lab.node(1);
    for (index, victim) in node.pods[0].ips.iter().enumerate() {
        let neighbour = &node.pods[1];
        let mut receiver = udp::Receiver::listen(&node.pods[0].netns, *victim, PORT)?;
        let before = node.status()?.guard.in_pod;
        inject::forge(&mesh.lab.attacker, &node.netns, neighbour.ips[index], *victim, PORT, "forged")?;
        // The neighbour itself still reaches the pod: by then the forged packet would have.
        udp::send(&neighbour.netns, *victim, PORT, "honest")?;
        receiver.expect("honest", SOON)?;
        ensure!(!receiver.has("forged"), "a packet from the underlay was taken for one of pod {neighbour:?}");
        ensure!(node.status()?.guard.in_pod == before + 1, "it was not counted");
    }
    let seen = mesh.capture.reset()?;
    ensure!(seen.clear == 2, "the forged packets were not on the underlay: {seen:?}");
    Ok(())
}

fn quoted_in_the_clear() -> Result<()> {
    let mesh = Mesh::up()?;
    let sender = mesh.lab.node(2);
    for cidr in &mesh.node().pod_cidrs {
        // Nobody has this address, so node 1 will say so to node 2, after the time that takes.
        let dead = warren_testkit::lab::host(*cidr, 99);
        let from = sender.ips.iter().find(|ip| ip.is_ipv4() == dead.is_ipv4()).context("no such family")?;
        let before = errors_sent(mesh.node())?;
        sender.netns.run(|| UdpSocket::bind((*from, 0))?.send_to(&[7; 300], (dead, PORT)))??;
        wait::until(&format!("the error about {dead}"), SOON, || {
            ensure!(errors_sent(mesh.node())? > before, "none sent so far");
            Ok(())
        })?;
    }
    mesh.capture.report()?.no_clear_text()
}

/// How many ICMP errors a node has made: it counts them before the guard sees them.
fn errors_sent(node: &Node) -> Result<u64> {
    let counters = node.netns.sh("nstat -asz IcmpOutDestUnreachs Icmp6OutDestUnreachs")?;
    let lines = counters.lines().filter(|line| line.starts_with("Icmp"));
    let numbers = lines
        .map(|line| line.split_whitespace().nth(1).context("no number")?.parse::<u64>().context("no number"));
    numbers.sum()
}

fn hung_tunnel() -> Result<()> {
    // The second has a process unless all nodes' tunnels are the kernel's.
    Backend::of(2)?.needs_process()?;
    let mut mesh = Mesh::up_around(2)?;
    let pid = mesh.node().tunnel_pid()?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP)?;
    for damage in ["nft delete table inet warren", "ip rule del priority 5180", "ip route flush table 5180"] {
        mesh.node().netns.sh(damage)?;
        let start = Instant::now();
        wait::until("the repair", SOON, || {
            mesh.node().netns.sh("nft list table inet warren")?;
            ensure!(mesh.node().netns.sh("ip rule")?.contains("lookup 5180"), "the rule is missing");
            ensure!(mesh.node().netns.sh("ip route show table 5180")?.contains("unreachable"), "no routes");
            Ok(())
        })?;
        println!("with a stopped tunnel, after `{damage}`: repaired after {:?}", start.elapsed());
        ensure!(start.elapsed() < wait::patient(Duration::from_secs(2)), "too late");
    }
    let _waiting = fill_backlog(&mesh)?;
    let start = Instant::now();
    wait::until("a new tunnel", Duration::from_secs(40), || {
        let now = mesh.node().tunnel_pid()?;
        ensure!(now != pid, "it is still {pid}");
        Ok(())
    })
    .with_context(|| mesh.node().log())?;
    println!("the stopped tunnel was replaced after {:?}", start.elapsed());
    mesh.sealed_until("the mesh", |node| {
        node.ready()?;
        ensure!(node.status()?.peers[0].handshake_age.is_some(), "no handshake yet");
        Ok(())
    })
}

/// Connections to a tunnel that accepts none, until it takes no more: `wg show` in a loop makes as many.
fn fill_backlog(mesh: &Mesh) -> Result<Vec<OwnedFd>> {
    let mut waiting = Vec::new();
    loop {
        match mesh.node().call_tunnel(0) {
            Ok(socket) => waiting.push(socket),
            Err(error) if error.downcast_ref() == Some(&Errno::EAGAIN) => return Ok(waiting),
            Err(error) => return Err(error).context("filling the backlog"),
        }
    }
}

fn idle_visitors() -> Result<()> {
    let mesh = Mesh::up()?;
    let node = mesh.node();
    let connect = || TcpStream::connect(warren_api::names::HTTP);
    // Kept open, and as many as a backlog and the daemon take together.
    let visitors: Vec<TcpStream> = node.netns.run(|| (0..1200).map_while(|_| connect().ok()).collect())?;
    ensure!(visitors.len() > 100, "only {} visitors got in", visitors.len());
    node.netns.sh("nft delete table inet warren")?;
    let start = Instant::now();
    wait::until("the repair", SOON, || node.netns.sh("nft list table inet warren"))?;
    ensure!(
        start.elapsed() < wait::patient(Duration::from_secs(2)),
        "repaired only after {:?}",
        start.elapsed()
    );
    drop(visitors);
    wait::until("an answer", SOON, || node.ready())
}
