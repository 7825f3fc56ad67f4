//! A lab with Warren in it, and what all scenarios ask of it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use warren_testkit::capture::{Capture, Report};
use warren_testkit::lab::{Lab, Node, Plan, Pod, WarrendOptions};
use warren_testkit::scenario::NotRun;
use warren_testkit::traffic::ping::{Flood, Ping};
use warren_testkit::wait;

/// Whatever somebody breaks by hand is to be whole again after this time (issue 2), [`wait::patient`].
pub const REPAIR: Duration = Duration::from_secs(2);

/// The time between two pings of [`Traffic`], [`wait::patient`].
const BEAT: Duration = Duration::from_millis(4);

/// A lab, and a capture of its underlay that has been seen to work.
pub struct Mesh {
    pub lab: Lab,
    pub capture: Capture,
}

/// Builds a lab **without** Warren running, proves that its pods talk in the clear and that the capture sees
/// it, and hands it to a scenario. A scenario that fails shows the end of all logs, then why: what cuts a long output
/// leaves its end.
pub fn in_lab(plan: Plan, scenario: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    let lab = Lab::new(plan)?;
    let capture = lab.capture()?;
    let mesh = Mesh { lab, capture };
    mesh.positive_control()?;
    scenario(&mesh).map_err(|error| match error.is::<NotRun>() {
        true => error,
        false => anyhow!("{}\n{error:#}", mesh.lab.logs()),
    })
}

/// [`in_lab`] with Warren running on all nodes, and every pair of them talking.
pub fn in_mesh(plan: Plan, scenario: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    in_lab(plan, |mesh| {
        mesh.lab.start_all(&WarrendOptions::default())?;
        mesh.await_up()?;
        scenario(mesh)
    })
}

/// Two nodes with two pods each.
pub fn two_nodes() -> Plan {
    Plan { nodes: 2, ..Plan::default() }
}

impl Mesh {
    pub fn node(&self, number: usize) -> &Node {
        self.lab.node(number)
    }

    /// The pod `pod` of the node `node`, both from 1.
    pub fn pod(&self, node: usize, pod: usize) -> &Pod {
        &self.node(node).pods[pod - 1]
    }

    fn positive_control(&self) -> Result<()> {
        let (from, to) = (self.pod(1, 1), self.pod(2, 2));
        for ip in to.ips.iter().filter(|ip| self.lab.plan.has_clear_path(**ip)) {
            Ping::default().run(&from.netns, *ip)?.complete().context("without Warren")?;
            let report = self.capture.reset()?;
            // Five pings and five answers.
            ensure!(report.clear == 10 && report.dropped == 0, "the capture is blind to {ip}: {report:?}");
        }
        Ok(())
    }

    /// Waits until every node is ready and has shaken hands with every other.
    pub fn await_up(&self) -> Result<()> {
        let all: Vec<&Node> = self.lab.nodes.iter().collect();
        await_up(&all)
    }

    /// Fails if there was clear text since the start, or the last call of this; and if there was nothing
    /// encrypted either, since then nothing was looked at.
    pub fn sealed(&self) -> Result<Report> {
        let report = self.silent()?;
        ensure!(report.wireguard_data > 0, "the capture saw nothing encrypted: {report:?}");
        Ok(report)
    }

    /// Fails if there was clear text since the start, or the last call of this or of [`Mesh::sealed`].
    pub fn silent(&self) -> Result<Report> {
        let report = self.capture.reset()?;
        report.no_clear_text()?;
        Ok(report)
    }

    /// Starts [`Traffic`] between the first two nodes.
    pub fn traffic(&self) -> Result<Traffic> {
        Traffic::start(&[(self.pod(1, 1), self.pod(2, 1)), (self.pod(2, 2), self.pod(1, 2))])
    }
}

/// Waits until all of `nodes` are ready and have shaken hands with each other.
pub fn await_up(nodes: &[&Node]) -> Result<()> {
    wait::until("the mesh", Duration::from_secs(20), || {
        nodes.iter().try_for_each(|node| {
            node.ready()?;
            let status = node.status()?;
            for other in nodes.iter().filter(|other| other.name != node.name) {
                let peer = status.peers.iter().find(|peer| peer.node == other.name);
                let peer = peer.with_context(|| format!("{} does not know {}", node.name, other.name))?;
                peer.handshake_age
                    .with_context(|| format!("{} has not shaken hands with {}", node.name, other.name))?;
            }
            Ok(())
        })
    })
}

/// One pod reaches the other over every address family, without loss.
pub fn talk(from: &Pod, to: &Pod) -> Result<()> {
    for ip in &to.ips {
        let answers = Ping { count: 3, ..Ping::default() }.run(&from.netns, *ip)?;
        answers.complete().with_context(|| format!("{} to {} ({ip})", from.name, to.name))?;
    }
    Ok(())
}

/// One pod does not reach the other over any address family.
pub fn no_talk(from: &Pod, to: &Pod) -> Result<()> {
    none_talk(&[(from, to)])
}

/// In no pair one pod reaches the other over any address family. All try at once, since each waits in vain.
pub fn none_talk(pairs: &[(&Pod, &Pod)]) -> Result<()> {
    let vain = Ping {
        count: 3,
        interval: wait::patient(BEAT),
        patience: Duration::from_millis(100),
        ..Ping::default()
    };
    std::thread::scope(|scope| {
        let directions = pairs.iter().flat_map(|(from, to)| to.ips.iter().map(move |ip| (from, to, ip)));
        let tries: Vec<_> = directions
            .map(|(from, to, ip)| {
                scope.spawn(move || {
                    let answers = vain.run(&from.netns, *ip)?;
                    ensure!(answers.received == 0, "{} reached {} ({ip}): {answers}", from.name, to.name);
                    Ok(())
                })
            })
            .collect();
        tries.into_iter().try_for_each(|vain| vain.join().expect("a ping does not panic"))
    })
}

/// Waits until one pod reaches the other over every address family.
pub fn await_talk(from: &Pod, to: &Pod, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    let once = Ping { count: 1, patience: Duration::from_millis(200), ..Ping::default() };
    for ip in &to.ips {
        wait::until(&format!("an answer from {} ({ip}) to {}", to.name, from.name), limit, || {
            once.run(&from.netns, *ip)?.complete()
        })?;
    }
    Ok(start.elapsed())
}

/// Pings between pairs of pods over every address family, until told to stop.
pub struct Traffic(Vec<Flood>);

/// What a disturbance did to [`Traffic`].
pub struct Damage {
    pub sent: u32,
    pub lost: u32,
    /// The longest time without an answer in any of the directions.
    pub outage: Duration,
}

impl Traffic {
    /// Starts, and returns when all directions were answered.
    pub fn start(pairs: &[(&Pod, &Pod)]) -> Result<Self> {
        let directions = pairs.iter().flat_map(|(from, to)| to.ips.iter().map(move |ip| (from, *ip)));
        Ok(Self(
            directions
                .map(|(from, ip): (_, IpAddr)| Flood::start(&from.netns, ip, wait::patient(BEAT)))
                .collect::<Result<_>>()?,
        ))
    }

    /// Waits until every direction is answered.
    pub fn await_answers(&mut self, limit: Duration) -> Result<()> {
        self.0.iter_mut().try_for_each(|flood| flood.await_answer(limit))
    }

    /// Lets it run for a while.
    pub fn run_for(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Stops, once all directions are answered again, and tells what was lost.
    pub fn stop(self) -> Result<Damage> {
        let mut damage = Damage { sent: 0, lost: 0, outage: Duration::ZERO };
        for flood in self.0 {
            let answers = flood.stop()?;
            damage.sent += answers.sent;
            damage.lost += answers.missing.len() as u32;
            damage.outage = damage.outage.max(answers.silence);
        }
        Ok(damage)
    }
}

impl Damage {
    /// Fails if a single ping was lost.
    pub fn none(&self) -> Result<()> {
        ensure!(self.lost == 0, "{} of {} pings were lost, over {:?}", self.lost, self.sent, self.outage);
        Ok(())
    }
}

/// All that Warren keeps on a node, as text: rules, routes, guard, interface, tunnel. What differs without
/// being different is left out: counters, the interface's number, and the link-local address that the kernel
/// draws for it.
pub fn node_state(node: &Node) -> Result<String> {
    let mut state = String::new();
    for command in [
        "ip -4 rule show",
        "ip -6 rule show",
        "ip -4 route show table 5180",
        "ip -6 route show table 5180",
        "ip -4 route show table 5181",
        "ip -6 route show table 5181",
        "ip -oneline link show dev warren-a0",
        "ip -oneline address show dev warren-a0",
        "nft --stateless list ruleset",
        "wg show warren-a0 listen-port",
        "wg show warren-a0 allowed-ips",
        "wg show warren-a0 persistent-keepalive",
    ] {
        // Of what is gone altogether, the commands say so and fail.
        let text = node.netns.sh(command).unwrap_or_else(|_| "nothing".into());
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains("inet6 fe80::"))
            // `ip -oneline` begins with the interface's number.
            .map(|line| {
                if command.contains("-oneline") {
                    line.split_once(':').map_or(line, |(_, rest)| rest)
                } else {
                    line
                }
            })
            .map(str::trim_end)
            .collect();
        lines.sort_unstable();
        state += &format!("{command}\n{}\n", lines.join("\n"));
    }
    Ok(state)
}

/// Waits until a node is as `wanted` again; returns how long it took.
pub fn await_state(node: &Node, wanted: &str, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    wait::until(&format!("the repair of {}", node.name), limit, || {
        let state = node_state(node)?;
        ensure!(state == wanted, "it differs:\n{}", difference(wanted, &state));
        Ok(start.elapsed())
    })
}

/// The lines of either text that the other lacks.
pub fn difference(wanted: &str, found: &str) -> String {
    let lacking = |these: &str, those: &str, sign: char| -> Vec<String> {
        let those: Vec<&str> = those.lines().collect();
        these.lines().filter(|line| !those.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    [lacking(wanted, found, '-'), lacking(found, wanted, '+')].concat().join("\n")
}
