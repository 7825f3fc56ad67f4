//! The daemon as the DaemonSet runs it: two containers with one capability, on a node that is tainted until its
//! traffic is safe.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_api::status::Enforcement;
use warren_testkit::lab::{Node, Rights, STARTUP_TAINT, WarrendOptions, write_atomically};
use warren_testkit::wait;

use crate::cluster::{NEWS, taints, three_nodes, two_nodes};
use crate::common::{await_talk, in_lab, talk};

fn as_in_the_manifest() -> WarrendOptions {
    WarrendOptions { rights: Rights::Manifest, ..WarrendOptions::default() }
}

/// All that Warren does, it does with NET_ADMIN alone; each container may be restarted without the other.
pub fn rights_of_the_manifest() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        for node in &mesh.lab.nodes {
            // Containers of a pod start in no order.
            if node.number == 2 {
                node.start_warrend(&as_in_the_manifest())?;
                node.start_tunnel()?;
            } else {
                node.start_tunnel()?;
                node.start_warrend(&as_in_the_manifest())?;
            }
        }
        mesh.await_up()?;
        for node in &mesh.lab.nodes {
            let daemon = node.warrend_pid().context("warrend has ended")?;
            for pid in [daemon, node.tunnel_pid()?] {
                only_net_admin(pid).with_context(|| format!("process {pid} on {}", node.name))?;
            }
        }
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        talk(mesh.pod(3, 1), mesh.pod(1, 1))?;
        mesh.sealed()?;

        // The kubelet restarts the control container: no packet is lost.
        let node = mesh.node(1);
        let traffic = mesh.traffic()?;
        node.kill_warrend()?;
        node.start_warrend(&as_in_the_manifest())?;
        wait::until("warrend after its restart", NEWS, || node.ready())?;
        mesh.await_up()?;
        traffic.stop()?.none().context("over a restart of warrend")?;

        // The kubelet restarts the tunnel's container: nothing leaks, and traffic comes back.
        let traffic = mesh.traffic()?;
        node.kill_tunnel()?;
        node.start_tunnel()?;
        mesh.await_up()?;
        await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(10))?;
        let damage = traffic.stop()?;
        println!("a restart of the tunnel's container: {} of {} pings lost", damage.lost, damage.sent);
        mesh.sealed().map(drop)
    })
}

/// With what the manifest and the kubelet tell it and no word more, warrend finds the API server (its address in the
/// environment; token, certificate and namespace in files) and its settings, which it follows without a restart.
pub fn as_the_kubelet_starts_it() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        for node in &mesh.lab.nodes {
            node.start_tunnel()?;
            node.start_container(mesh.lab.api())?;
        }
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        talk(mesh.pod(3, 1), mesh.pod(1, 1))?;
        mesh.sealed()?;
        for node in &mesh.lab.nodes {
            let status = node.status()?;
            ensure!(status.node == node.name && status.enforcement == Enforcement::Strict, "{status:?}");
            only_net_admin(node.warrend_pid().context("warrend has ended")?)?;
            ensure!(
                !taints(&mesh.lab, node.number)?.contains(&STARTUP_TAINT.to_owned()),
                "it is still tainted"
            );
        }

        let node = mesh.node(1);
        let before = node.warrend_pid();
        write_atomically(&node.setting_path("enforcement"), "permissive\n")?;
        wait::until("the changed setting", Duration::from_secs(15), || {
            let status = node.status()?;
            ensure!(status.enforcement == Enforcement::Permissive, "it is {:?}", status.enforcement);
            Ok(())
        })?;
        ensure!(node.warrend_pid() == before, "it was restarted");

        // The key lies where the manifest mounts the node's disk: a restart keeps it.
        let key = node.status()?.public_key;
        node.kill_warrend()?;
        node.start_container(mesh.lab.api())?;
        mesh.await_up()?;
        ensure!(node.status()?.public_key == key, "a restart has changed the key");
        mesh.silent().map(drop)
    })
}

/// `/proc/PID/status`: the capabilities, and no way to more.
fn only_net_admin(pid: u32) -> Result<()> {
    const NET_ADMIN: u64 = 1 << 12;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("no {name} in its status"))
    };
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let capabilities = u64::from_str_radix(field(set)?, 16)?;
        ensure!(capabilities == NET_ADMIN, "{set} is {capabilities:#x}");
    }
    ensure!(field("NoNewPrivs")? == "1", "it may gain privileges");
    Ok(())
}

/// The startup taint stays for as long as the node's traffic is not safe, then goes; other taints stay.
pub fn startup_taint() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let before = taints(&mesh.lab, 1)?;
        ensure!(before.len() > 1 && is_tainted(&before), "the Node begins with {before:?}");
        // Without its tunnel.
        node.start_warrend(&as_in_the_manifest())?;
        wait::until("warrend's account of what is missing", NEWS, || problem(node))?;
        ensure!(is_tainted(&taints(&mesh.lab, 1)?), "the taint went before the node was ready");

        node.start_tunnel()?;
        wait::until("warrend", NEWS, || node.ready())?;
        wait::until("the end of the startup taint", NEWS, || {
            let now = taints(&mesh.lab, 1)?;
            ensure!(!is_tainted(&now), "the taints are {now:?}");
            Ok(())
        })?;
        let others: Vec<String> = before.into_iter().filter(|taint| taint != STARTUP_TAINT).collect();
        let after = taints(&mesh.lab, 1)?;
        ensure!(after == others, "of the other taints {others:?}, {after:?} are left");
        ensure!(is_tainted(&taints(&mesh.lab, 2)?), "the taint of another node went, too");
        Ok(())
    })
}

fn is_tainted(taints: &[String]) -> bool {
    taints.iter().any(|taint| taint == STARTUP_TAINT)
}

/// Succeeds when warrend knows all that it has to know, and says that the tunnel is missing.
fn problem(node: &Node) -> Result<()> {
    let status = node.status()?;
    ensure!(!status.ready, "it is ready without a tunnel");
    let text = status.problems.join("; ");
    ensure!(text.contains("tunnel"), "its problems are: {text}");
    Ok(())
}
