//! A lab with links of chosen sizes and Warren in it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::capture::{Capture, Report};
use warren_testkit::lab::{Lab, Node, Plan, Pod, WarrendOptions};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

use crate::wire::Detour;

/// How long warrend may take to know a narrow path from its start on: a probe, and a second until its answer is
/// looked for.
pub const FOUND: Duration = Duration::from_secs(8);

/// Lets pass the time within which a peer that is known now is probed and what came of it is read, where nothing is to come
/// of it: a second between two bursts of probes, a second until the look, whatever the machine, and time to do so.
pub fn await_probes() {
    std::thread::sleep(Duration::from_secs(2) + wait::patient(Duration::from_millis(500)));
}

/// What WireGuard adds to packets, by what the endpoints' addresses are.
pub const V4: u32 = 60;
pub const V6: u32 = 80;

/// What a route says where packets of `bytes` get through: a multiple of 16, which WireGuard pads to.
pub fn route_of(bytes: u32, overhead: u32) -> u32 {
    (bytes - overhead) / 16 * 16
}

/// A lab, and captures of all that passes between its nodes.
pub struct Mesh {
    pub lab: Lab,
    /// The routers on the way to the last node.
    pub detour: Option<Detour>,
    captures: Vec<Capture>,
}

/// Builds a lab, has `rewire` change it, sees its pods talk in the clear, starts Warren and hands it to a
/// scenario. A scenario that fails shows the end of all logs.
pub fn in_mesh(
    plan: Plan,
    rewire: impl FnOnce(&Lab) -> Result<Option<Detour>>,
    scenario: impl FnOnce(&Mesh) -> Result<()>,
) -> Result<()> {
    in_mesh_of(&WarrendOptions::default(), plan, rewire, scenario)
}

/// [`in_mesh`] with daemons started in another way.
pub fn in_mesh_of(
    options: &WarrendOptions,
    plan: Plan,
    rewire: impl FnOnce(&Lab) -> Result<Option<Detour>>,
    scenario: impl FnOnce(&Mesh) -> Result<()>,
) -> Result<()> {
    let lab = Lab::new(plan)?;
    let detour = rewire(&lab)?;
    let mut captures = vec![lab.capture()?];
    if let Some(detour) = &detour {
        captures.push(lab.capture_at(&detour.east)?);
    }
    let mesh = Mesh { lab, detour, captures };
    mesh.positive_control()?;
    mesh.lab.start_all(options)?;
    mesh.await_up().and_then(|()| scenario(&mesh)).with_context(|| mesh.lab.logs())
}

/// So many lanes; that one has proven itself is seen at a look.
pub fn lanes(number: usize) -> WarrendOptions {
    let extra = vec!["--lanes".to_owned(), number.to_string()];
    WarrendOptions { extra, resync: Some("1s".to_owned()), ..WarrendOptions::default() }
}

/// Links that are all as the plan says.
pub fn as_planned(_: &Lab) -> Result<Option<Detour>> {
    Ok(None)
}

/// Two nodes with a pod each.
pub fn two_nodes() -> Plan {
    Plan { nodes: 2, pods: 1, ..Plan::default() }
}

impl Mesh {
    pub fn node(&self, number: usize) -> &Node {
        self.lab.node(number)
    }

    /// The first pod of a node.
    pub fn pod(&self, node: usize) -> &Pod {
        &self.node(node).pods[0]
    }

    fn positive_control(&self) -> Result<()> {
        let (from, to) = (self.pod(1), self.pod(2));
        for ip in to.ips.iter().filter(|ip| self.lab.plan.has_clear_path(**ip)) {
            Ping::default().run(&from.netns, *ip)?.complete().context("without Warren")?;
            for capture in &self.captures {
                let report = capture.reset()?;
                // Five pings and five answers.
                ensure!(
                    report.clear == 10 && report.dropped == 0,
                    "the capture is blind to {ip}: {report:?}"
                );
            }
        }
        Ok(())
    }

    fn await_up(&self) -> Result<()> {
        wait::until("the mesh", Duration::from_secs(20), || {
            self.lab.nodes.iter().try_for_each(|node| {
                node.ready()?;
                let peers = node.status()?.peers;
                let met = peers.iter().filter(|peer| peer.handshake_age.is_some()).count();
                let others = self.lab.nodes.len() - 1;
                ensure!(met == others, "{} has met {met} of {others} others", node.name);
                Ok(())
            })
        })
    }

    /// What was captured since the start, or the last call of this. Fails if there was clear text, or nothing
    /// encrypted either.
    pub fn sealed(&self) -> Result<Report> {
        let mut last = Report::default();
        for capture in &self.captures {
            last = capture.reset()?;
            last.no_clear_text()?;
            ensure!(last.wireguard_data > 0, "the capture saw nothing encrypted: {last:?}");
        }
        Ok(last)
    }

    /// [`Mesh::sealed`], and the underlay carried no fragments.
    pub fn sealed_and_whole(&self) -> Result<Report> {
        let report = self.sealed()?;
        ensure!(report.fragments == 0, "{} fragments on the underlay", report.fragments);
        Ok(report)
    }

    /// The MTU of the tunnels of a node.
    pub fn mtu(&self, node: usize) -> Result<u32> {
        Ok(self.node(node).status()?.mtu)
    }

    /// Fails unless all routes of one node to the pods of another say `wanted`, or nothing.
    pub fn route_mtu(&self, from: usize, to: usize, wanted: Option<u32>) -> Result<()> {
        for cidr in &self.node(to).pod_cidrs {
            let family = if cidr.addr().is_ipv4() { "-4" } else { "-6" };
            let routes = self.node(from).netns.sh(&format!("ip {family} route show table 5180 {cidr}"))?;
            // Of a route over several lanes, each way has a line of its own, behind the one that says the MTU.
            let lines = routes.lines().filter(|line| !line.starts_with("unreachable"));
            let route = lines.collect::<Vec<_>>().join(" ");
            ensure!(route.contains("warren-"), "no route to {cidr} through a tunnel:\n{routes}");
            let mut words = route.split_whitespace();
            let mtu = words.find(|word| *word == "mtu").and_then(|_| words.next()?.parse().ok());
            ensure!(mtu == wanted, "not {wanted:?}: {route}");
        }
        Ok(())
    }

    /// Waits until both nodes' routes to each other lead over so many lanes.
    pub fn await_lanes(&self, number: usize) -> Result<()> {
        // A handshake that went missing is tried again after 5 s (REKEY_TIMEOUT), by keepalives after 25 s.
        wait::until("the lanes", Duration::from_secs(40), || {
            for (from, to) in [(1, 2), (2, 1)] {
                for cidr in &self.node(to).pod_cidrs {
                    let family = if cidr.addr().is_ipv4() { "-4" } else { "-6" };
                    let show = format!("ip {family} route show table 5180 {cidr}");
                    let routes = self.node(from).netns.sh(&show)?;
                    let found = routes.matches("dev warren-").count();
                    ensure!(found == number, "{found} lanes of {number}: {routes}");
                }
            }
            Ok(())
        })
    }

    /// Waits until the routes of one node to another's pods say `wanted`.
    pub fn await_route_mtu_of(&self, from: usize, to: usize, wanted: Option<u32>) -> Result<()> {
        wait::until("the routes' MTU", FOUND, || self.route_mtu(from, to, wanted))
    }

    /// Waits until both nodes' routes to each other say `wanted`.
    pub fn await_route_mtu(&self, wanted: Option<u32>, limit: Duration) -> Result<()> {
        wait::until("the routes' MTU", limit, || {
            self.route_mtu(1, 2, wanted)?;
            self.route_mtu(2, 1, wanted)
        })
    }
}
