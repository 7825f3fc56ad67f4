//! Nodes on one link, of one size or of several.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warren_testkit::lab::{Families, Plan, WarrendOptions, write_atomically};
use warren_testkit::wait;

use crate::common::{V4, V6, as_planned, in_mesh, in_mesh_of, route_of, two_nodes};
use crate::{common, sizes, wire};

/// The header of a frame of Ethernet.
const ETHERNET: u32 = 14;

/// The sizes of packets through tunnels over Ethernet.
const IN_V4: u32 = 1500 - V4;
const IN_V6: u32 = 1500 - V6;

pub fn equal() -> Result<()> {
    for (underlay, mtu) in [(Families::V4, IN_V4), (Families::V6, IN_V6), (Families::Dual, IN_V6)] {
        in_mesh(Plan { underlay, ..two_nodes() }, as_planned, |mesh| {
            ensure!(mesh.mtu(1)? == mtu, "the tunnels' MTU is {}", mesh.mtu(1)?);
            mesh.route_mtu(1, 2, None)?;
            sizes::all(mesh.pod(1), mesh.pod(2), mtu)?;
            mesh.route_mtu(1, 2, None)?;
            mesh.sealed_and_whole()?;
            Ok(())
        })
        .with_context(|| format!("an underlay {underlay:?}"))?;
    }
    Ok(())
}

pub fn deaf_pods() -> Result<()> {
    for (underlay, mtu) in [(Families::V4, IN_V4), (Families::V6, IN_V6)] {
        in_mesh(Plan { underlay, ..two_nodes() }, as_planned, |mesh| {
            sizes::clamped(mesh.pod(1), mesh.pod(2), mtu, sizes::STALL)?;
            mesh.sealed_and_whole()?;

            // It is the clamp that does it.
            for number in [1, 2] {
                mesh.node(number).stop_warrend()?;
                mesh.node(number).netns.sh("nft flush chain inet warren mss")?;
            }
            // A quarter of the time will do for what is to stand still for good.
            let without = sizes::clamped(mesh.pod(1), mesh.pod(2), mtu, sizes::STALL / 4);
            let stalled = without.err().is_some_and(|error| format!("{error:#}").contains("it stands still"));
            ensure!(stalled, "TCP passes without the clamp, too");
            Ok(())
        })
        .with_context(|| format!("an underlay {underlay:?}"))?;
    }
    Ok(())
}

pub fn other_family() -> Result<()> {
    for (underlay, overlay, mtu) in [(Families::V4, Families::V6, IN_V4), (Families::V6, Families::V4, IN_V6)]
    {
        in_mesh(Plan { underlay, overlay, ..two_nodes() }, as_planned, |mesh| {
            sizes::all(mesh.pod(1), mesh.pod(2), mtu)?;
            mesh.sealed_and_whole()?;
            Ok(())
        })
        .with_context(|| format!("pods {overlay:?} in an underlay {underlay:?}"))?;
    }
    Ok(())
}

/// What does not fit the smaller link is dropped there without a word, as by a switch or a network card: only the
/// node's own announcement tells.
pub fn one_smaller() -> Result<()> {
    for (underlay, overhead) in [(Families::V4, V4), (Families::V6, V6)] {
        let rewire = |lab: &_| wire::resize(lab, 2, 1400).map(|()| None);
        in_mesh(Plan { nodes: 3, underlay, ..two_nodes() }, rewire, |mesh| {
            let (route, own) = (route_of(1400, overhead), mesh.mtu(2)?);
            ensure!(own == 1400 - overhead, "the smaller node's tunnels have {own}");
            mesh.await_route_mtu_of(1, 2, Some(route))?;
            mesh.route_mtu(1, 3, None)?;
            mesh.route_mtu(2, 1, None)?;
            sizes::all(mesh.pod(1), mesh.pod(2), route)?;
            sizes::teach(mesh.pod(2), mesh.pod(1), own)?;
            sizes::all(mesh.pod(2), mesh.pod(1), own)?;
            sizes::all(mesh.pod(1), mesh.pod(3), 1500 - overhead)?;
            mesh.sealed_and_whole()?;
            Ok(())
        })
        .with_context(|| format!("an underlay {underlay:?}"))?;
    }
    Ok(())
}

pub fn jumbo() -> Result<()> {
    jumbo_over(1)
}

pub fn jumbo_over_lanes() -> Result<()> {
    jumbo_over(4)
}

fn jumbo_over(lanes: usize) -> Result<()> {
    in_mesh_of(&common::lanes(lanes), Plan { mtu: 9000, ..two_nodes() }, as_planned, |mesh| {
        mesh.await_lanes(lanes)?;
        let mtu = 9000 - 80;
        mesh.route_mtu(1, 2, None)?;
        mesh.sealed_and_whole()?;
        for ip in &mesh.pod(2).ips {
            sizes::exactly(&mesh.pod(1).netns, *ip, mtu)?;
        }
        // Single packets cannot have been joined on the way to the capture.
        let largest = mesh.sealed_and_whole()?.largest;
        ensure!((9000 - 40..=9000 + ETHERNET).contains(&largest), "the largest frame had {largest} bytes");
        sizes::all(mesh.pod(1), mesh.pod(2), mtu)?;
        mesh.sealed_and_whole()?;
        Ok(())
    })
}

pub fn mixed_jumbo() -> Result<()> {
    let rewire = |lab: &_| wire::resize(lab, 2, 1500).map(|()| None);
    in_mesh(Plan { nodes: 3, mtu: 9000, ..two_nodes() }, rewire, |mesh| {
        let route = route_of(1500, V6);
        mesh.await_route_mtu_of(1, 2, Some(route))?;
        mesh.route_mtu(1, 3, None)?;
        sizes::all(mesh.pod(1), mesh.pod(2), route)?;
        sizes::teach(mesh.pod(2), mesh.pod(1), IN_V6)?;
        sizes::all(mesh.pod(2), mesh.pod(1), IN_V6)?;
        sizes::all(mesh.pod(1), mesh.pod(3), 8920)?;
        mesh.sealed_and_whole()?;
        Ok(())
    })
}

/// Probes follow the tunnels' own packets past the tunnels. Inside, each would find the path as narrow as the route
/// through the tunnel says, and that route would become narrower still.
pub fn hosts_switched() -> Result<()> {
    let settings = tempfile::tempdir()?;
    let extra = vec!["--settings".to_owned(), settings.path().display().to_string()];
    let options = WarrendOptions { extra, ..WarrendOptions::default() };
    in_mesh_of(&options, Plan { nodes: 3, underlay: Families::V4, ..two_nodes() }, as_planned, |mesh| {
        fs::write(settings.path().join("encrypt-host"), "true")?;
        // Not before it is read has the next node anything to say of it.
        wait::until("the routes of the nodes' programs", Duration::from_secs(15), || {
            let routes = mesh.node(1).netns.sh("ip -4 route show table 5182")?;
            ensure!(routes.matches("warren-").count() == 2, "{routes}");
            Ok(())
        })?;
        // Who comes back is new, and probed at once.
        let (stands, away) = (mesh.node(3).manifest_path(), settings.path().join(".away"));
        fs::copy(&stands, &away)?;
        fs::remove_file(&stands)?;
        let known = |wanted: usize| {
            wait::until("the peers of node 1", Duration::from_secs(10), || {
                let peers = mesh.node(1).status()?.peers.len();
                ensure!(peers == wanted, "{peers} of {wanted}");
                Ok(())
            })
        };
        known(1)?;
        write_atomically(&stands, &fs::read_to_string(&away)?)?;
        known(2)?;
        common::await_probes();
        mesh.route_mtu(1, 3, None)?;
        mesh.route_mtu(1, 2, None)?;
        mesh.sealed()?;
        Ok(())
    })
}

/// The error comes from the other node, through the tunnel, past both guards.
///
/// Pods' bridges must not join IPv6 fragments for netfilter here: the kernel then forgets how large they were
/// (`br_netfilter`, ahead of the routing), sends them on as one packet, and the far end refuses them again and
/// again, with Warren or without.
pub fn smaller_pods() -> Result<()> {
    in_mesh(two_nodes(), as_planned, |mesh| {
        let mtu = 1300;
        for node in &mesh.lab.nodes {
            node.netns.sysctl(&[("net.bridge.bridge-nf-call-ip6tables", "0")])?;
        }
        mesh.node(2).netns.ip(&format!("link set veth1 mtu {mtu}\nlink set cni0 mtu {mtu}"))?;
        mesh.pod(2).netns.ip(&format!("link set eth0 mtu {mtu}"))?;
        sizes::all(mesh.pod(1), mesh.pod(2), mtu)?;
        // And an error of this node about what came through the tunnel.
        for ip in &mesh.pod(1).ips {
            sizes::exactly(&mesh.pod(2).netns, *ip, mtu)?;
        }
        mesh.sealed_and_whole()?;
        for node in [1, 2] {
            let guard = mesh.node(node).status()?.guard;
            ensure!((guard.out_pod, guard.in_pod) == (0, 0), "the guard of node {node} dropped: {guard:?}");
        }
        Ok(())
    })
}
