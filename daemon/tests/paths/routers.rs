//! Nodes with routers between them.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use warren_testkit::lab::{Families, Lab, Plan, WarrendOptions};
use warren_testkit::traffic::ping::Flood;
use warren_testkit::wait;

use crate::common::{FOUND, Mesh, V4, V6, in_mesh, in_mesh_of, route_of, two_nodes};
use crate::wire::Detour;
use crate::{common, sizes};

/// The link between the routers.
const NARROW: u32 = 1400;

fn over_routers(underlay: Families, scenario: impl FnOnce(&Mesh, &Detour) -> Result<()>) -> Result<()> {
    let rewire = |lab: &Lab| Detour::new(lab, NARROW).map(Some);
    in_mesh(Plan { underlay, ..two_nodes() }, rewire, |mesh| {
        scenario(mesh, mesh.detour.as_ref().expect("it was just built"))
    })
}

fn narrow(options: &WarrendOptions, lanes: usize, underlay: Families, mtu: u32) -> Result<()> {
    let rewire = |lab: &Lab| Detour::new(lab, NARROW).map(Some);
    in_mesh_of(options, Plan { underlay, ..two_nodes() }, rewire, |mesh| {
        let start = Instant::now();
        mesh.await_route_mtu(Some(mtu), FOUND)?;
        println!("known {:?} after the mesh stood", start.elapsed());
        mesh.await_lanes(lanes)?;
        mesh.route_mtu(1, 2, Some(mtu))?;
        mesh.route_mtu(2, 1, Some(mtu))?;
        mesh.sealed()?;
        sizes::all(mesh.pod(1), mesh.pod(2), mtu)?;
        sizes::all(mesh.pod(2), mesh.pod(1), mtu)?;
        mesh.sealed_and_whole()?;
        Ok(())
    })
}

pub fn narrow_v4() -> Result<()> {
    narrow(&WarrendOptions::default(), 1, Families::V4, route_of(NARROW, V4))
}

pub fn narrow_v6() -> Result<()> {
    narrow(&WarrendOptions::default(), 1, Families::V6, route_of(NARROW, V6))
}

/// A path is that of all lanes to a peer.
pub fn narrow_v4_over_lanes() -> Result<()> {
    narrow(&common::lanes(4), 4, Families::V4, route_of(NARROW, V4))
}

pub fn narrow_v6_over_lanes() -> Result<()> {
    narrow(&common::lanes(4), 4, Families::V6, route_of(NARROW, V6))
}

/// Probes leave past the tunnel, as WireGuard's own packets do: inside they would find nothing.
pub fn narrow_for_hosts() -> Result<()> {
    let options = WarrendOptions { extra: vec!["--encrypt-host".into()], ..WarrendOptions::default() };
    narrow(&options, 1, Families::V4, route_of(NARROW, V4))?;
    narrow(&options, 1, Families::V6, route_of(NARROW, V6))
}

/// The kernel remembers, and is asked before the first route is changed.
pub fn restart() -> Result<()> {
    for (underlay, mtu) in [(Families::V4, route_of(NARROW, V4)), (Families::V6, route_of(NARROW, V6))] {
        restart_over(underlay, mtu)?;
    }
    Ok(())
}

fn restart_over(underlay: Families, mtu: u32) -> Result<()> {
    over_routers(underlay, |mesh, _| {
        mesh.await_route_mtu(Some(mtu), FOUND)?;
        let node = mesh.node(1);
        node.stop_warrend()?;
        // Every change of a route is told here.
        let mut monitor = node.netns.command("ip");
        let log = node.log_path().with_file_name("routes.log");
        monitor.args(["monitor", "route"]).stdout(File::create(&log)?).stderr(Stdio::null());
        let mut monitor = monitor.spawn()?;
        let changes = || fs::read_to_string(&log).context("what ip monitor wrote");
        let mut number = 0;
        wait::until("ip monitor", Duration::from_secs(5), || {
            number += 1;
            node.netns.ip(&format!("route add 198.51.100.{number} dev lo table 99"))?;
            ensure!(changes()?.contains("table 99"), "it tells nothing");
            Ok(())
        })?;
        node.start_warrend(&WarrendOptions::default())?;
        wait::until("warrend", Duration::from_secs(10), || node.ready())?;
        common::await_probes();
        mesh.route_mtu(1, 2, Some(mtu))?;
        monitor.kill()?;
        monitor.wait()?;
        let changes = changes()?;
        let changes: Vec<&str> = changes.lines().filter(|line| line.contains("table 51")).collect();
        ensure!(changes.is_empty(), "routes were changed: {changes:?}");
        mesh.sealed()?;
        Ok(())
    })
}

/// The kernel forgets after ten minutes, here after seconds; then warrend's next probe finds the way free.
pub fn grows() -> Result<()> {
    over_routers(Families::V4, |mesh, detour| {
        mesh.await_route_mtu(Some(route_of(NARROW, V4)), FOUND)?;
        for node in &mesh.lab.nodes {
            node.netns.sysctl(&[("net.ipv4.route.mtu_expires", "5")])?;
            node.netns.sh("ip -4 route flush cache")?;
        }
        let flood = Flood::start(&mesh.pod(1).netns, mesh.pod(2).ips[0], Duration::from_millis(50))?;
        detour.resize(1500)?;
        let start = Instant::now();
        // A minute until the next probe, and doubts.
        mesh.await_route_mtu(None, Duration::from_secs(75))?;
        println!("the wider path is used after {:?}", start.elapsed());
        let lost = flood.stop()?.missing.len();
        ensure!(lost == 0, "{lost} pings were lost meanwhile");
        mesh.sealed()?;
        sizes::all(mesh.pod(1), mesh.pod(2), 1440)?;
        mesh.sealed_and_whole()?;
        Ok(())
    })
}

/// Nothing is learnt, but WireGuard's packets over IPv4 may be fragmented, and are.
pub fn silent_v4() -> Result<()> {
    silent(Families::V4, |mesh| {
        mesh.route_mtu(1, 2, None)?;
        for (from, to) in [(1, 2), (2, 1)] {
            let (from, to) = (mesh.pod(from), mesh.pod(to));
            for ip in &to.ips {
                sizes::exactly(&from.netns, *ip, 1440)?;
                sizes::in_pieces(&from.netns, &to.netns, *ip, 1440)?;
                sizes::stream(&from.netns, &to.netns, *ip, 1440)?;
            }
        }
        let report = mesh.sealed()?;
        ensure!(report.fragments > 0, "no fragments: did anything large pass? {report:?}");
        Ok(())
    })
}

/// No router fragments IPv6, and nobody learns why what is large is gone: small packets pass, large ones do not.
/// Who runs such a network has to say so, in a route or the link's MTU; then everything passes.
pub fn silent_v6() -> Result<()> {
    silent(Families::V6, |mesh| {
        mesh.route_mtu(1, 2, None)?;
        let (from, to) = (mesh.pod(1), mesh.pod(2));
        for ip in &to.ips {
            sizes::swallowed(&from.netns, *ip, 1420)?;
        }
        for (node, other) in [(1, 2), (2, 1)] {
            let other = mesh.node(other).ips[0];
            mesh.node(node).netns.ip(&format!("route add {other} dev eth0 mtu {NARROW}"))?;
            // The daemon's first probe comes with its start, the next ones a minute apart.
            mesh.node(node).stop_warrend()?;
            mesh.node(node).start_warrend(&WarrendOptions::default())?;
        }
        mesh.await_route_mtu(Some(route_of(NARROW, V6)), FOUND)?;
        sizes::all(from, to, route_of(NARROW, V6))?;
        mesh.sealed_and_whole()?;
        Ok(())
    })
}

fn silent(underlay: Families, scenario: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    let rewire = |lab: &Lab| {
        let detour = Detour::new(lab, NARROW)?;
        detour.silence()?;
        Ok(Some(detour))
    };
    in_mesh(Plan { underlay, ..two_nodes() }, rewire, |mesh| {
        // Longer than a probe and the look at its answer.
        std::thread::sleep(wait::patient(Duration::from_secs(3)));
        scenario(mesh)
    })
}
