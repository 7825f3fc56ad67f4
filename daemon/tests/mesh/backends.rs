//! What carries a node's tunnels is chosen, changed, and may be in somebody's way.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warren_api::{Backend, names};
use warren_testkit::lab::{Node, Rights, WarrendOptions, needs_kernel_wireguard};
use warren_testkit::{scenario, wait};

use crate::common::{difference, in_lab, no_talk, talk, two_nodes};
use crate::lanes;
use crate::strangers::{self, Stranger};

/// A handshake, and what it takes to make a tunnel of another kind in the place of one, [`wait::patient`].
const CHANGED: Duration = Duration::from_secs(1);

/// Node 1 changes from the kernel to userspace and back, by restarts with another `--backend`: it keeps its key, and
/// what is lost meanwhile is what one handshake takes.
pub fn change() -> Result<()> {
    change_of(1)
}

/// [`change`] with lanes: all of them change, and all are used again.
pub fn change_with_lanes() -> Result<()> {
    change_of(4)
}

fn change_of(number: u8) -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        needs_kernel_wireguard()?;
        let node = mesh.node(1);
        let options = || lanes::lanes(number, &[]);
        let run = |backend| node.start_warrend(&WarrendOptions { backend: Some(backend), ..options() });
        mesh.node(2).start_warrend(&options())?;
        run("kernel")?;
        lanes::await_lanes(mesh, [number, number])?;
        let key = node.status()?.public_key;
        for (argument, backend) in [("userspace", Backend::Userspace), ("kernel", Backend::Kernel)] {
            let traffic = mesh.traffic()?;
            node.stop_warrend()?;
            run(argument)?;
            wait::until("the change", Duration::from_secs(10), || {
                mesh.await_up()?;
                let seen = mesh.node(2).status()?;
                ensure!(
                    seen.peers[0].backend == backend,
                    "node-2 takes node-1 for {}",
                    seen.peers[0].backend
                );
                Ok(())
            })?;
            let damage = traffic.stop()?;
            println!(
                "to {argument}: {} of {} pings lost, over {:?}",
                damage.lost, damage.sent, damage.outage
            );
            ensure!(damage.outage < wait::patient(CHANGED), "no answer for {:?}", damage.outage);
            let status = node.status()?;
            ensure!(status.backend == backend, "it runs {}", status.backend);
            ensure!(status.public_key == key, "the key changed");
            lanes::await_lanes(mesh, [number, number])?;
            talk(mesh.pod(1, 1), mesh.pod(2, 2))?;
        }
        mesh.sealed()?;
        Ok(())
    })
}

/// What `auto` means depends on this kernel, and either is checked.
pub fn auto() -> Result<()> {
    let has = needs_kernel_wireguard().is_ok();
    in_lab(two_nodes(), |mesh| {
        mesh.lab.start_all(&WarrendOptions { backend: Some("auto"), ..WarrendOptions::default() })?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        let node = mesh.node(1);
        let (status, metrics, log) = (node.status()?, node.metrics()?, node.log());
        let announced = std::fs::read_to_string(node.manifest_path())?;
        let (backend, said) = match has {
            true => (Backend::Kernel, "WireGuard in the kernel carries the tunnels"),
            false => (Backend::Userspace, "modprobe wireguard"),
        };
        ensure!(status.backend == backend && status.fallback.is_none() == has, "{status:?}");
        ensure!(status.fallback.iter().all(|why| why.contains(said)), "{status:?}");
        let metric = metrics.lines().find(|line| line.starts_with("warren_backend_fallback{"));
        let metric = metric.with_context(|| format!("no fallback in {metrics}"))?;
        ensure!(metric.ends_with(if has { r#"{why=""} 0.0"# } else { " 1.0" }), "{metric}");
        ensure!(log.contains(said), "{log}");
        ensure!(announced.contains(&format!("warren.internal/backend: {backend}")), "{announced}");
        // The reason is wherever the fallback is.
        ensure!(
            [metric, &*announced].iter().all(|text| text.contains("modprobe wireguard") != has),
            "{metric}, {announced}"
        );
        mesh.sealed()?;
        Ok(())
    })
}

/// Somebody else's interface has the tunnel's name at start: the node is not ready and says what to do, the interface
/// stays as it is, no packet of a pod gets into it or leaves in the clear; and once it is gone, the node joins.
pub fn name_taken() -> Result<()> {
    for kind in strangers::KINDS {
        if kind == "wireguard" && needs_kernel_wireguard().is_err() {
            println!("{kind}: this kernel has none");
            continue;
        }
        in_lab(two_nodes(), |mesh| {
            let stranger = Stranger::make(mesh, kind)?;
            mesh.lab.start_all(&WarrendOptions::default())?;
            await_problem(mesh.node(1), "warren-a0 is not Warren")?;
            stranger.await_left_alone()?;
            stranger.makes_room()
        })
        .with_context(|| format!("a {kind} named warren-a0"))?;
    }
    Ok(())
}

/// The same of a TUN while nobody can tell whose it is: the directory of the sockets cannot be read.
pub fn name_taken_unseen() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let stranger = Stranger::make(mesh, "tuntap")?;
        node.start_tunnel()?;
        wait::until("the directory of the sockets", Duration::from_secs(5), || {
            ensure!(node.log().contains("serving the interfaces"), "warren-tunnel does not wait yet");
            Ok(())
        })?;
        node.netns.sh("chmod 0 /run/wireguard")?;
        mesh.node(2).start_warrend(&WarrendOptions::default())?;
        node.start_warrend(&WarrendOptions { rights: Rights::Manifest, ..WarrendOptions::default() })?;
        await_problem(node, "cannot be listed")?;
        stranger.await_left_alone()?;
        node.netns.sh("chmod 755 /run/wireguard")?;
        await_problem(node, "warren-a0 is not Warren")?;
        stranger.await_left_alone()?;
        stranger.makes_room()
    })
}

/// Somebody else listens where the tunnel should.
pub fn port_taken() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let other = node.netns.run(|| UdpSocket::bind(("0.0.0.0", names::LISTEN_PORT)))??;
        mesh.lab.start_all(&WarrendOptions::default())?;
        await_problem(node, "UDP port 51820 is taken")?;
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.silent()?;
        drop(other);
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.sealed()?;
        Ok(())
    })
}

/// A container without the capability. Nothing can be done for the node's traffic, so it must at least be told.
pub fn no_right() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        // The kernel tells what becomes of a new link up to a second later.
        let before = wait::until("links that are up", Duration::from_secs(5), || {
            let state = state(node)?;
            ensure!(!["DOWN", "NO-CARRIER", "linkdown"].iter().any(|sign| state.contains(sign)), "{state}");
            Ok(state)
        })?;
        node.start_warrend(&WarrendOptions { rights: Rights::None, ..WarrendOptions::default() })?;
        await_problem(node, "NET_ADMIN")?;
        let looks = || node.metric("warren_failed_looks_total{}");
        let first = looks()?;
        wait::until("more looks", Duration::from_secs(5), || {
            ensure!(looks()? >= first + 3, "only {} looks since", looks()? - first);
            Ok(())
        })?;
        await_problem(node, "NET_ADMIN")?;
        // Once, whatever the number of looks.
        let said = node.log().lines().filter(|line| line.contains("notices cannot be subscribed to")).count();
        ensure!(said == 1, "the log says {said} times that notices are refused");
        let after = state(node)?;
        ensure!(after == before, "the node is not as it was:\n{}", difference(&before, &after));
        ensure!(node.warrend_pid().is_some(), "warrend has ended");
        Ok(())
    })
}

/// What `auto` falls back from, `kernel` insists on.
pub fn no_module() -> Result<()> {
    if needs_kernel_wireguard().is_ok() {
        return Err(scenario::not_run("this kernel has WireGuard"));
    }
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        mesh.node(2).start_warrend(&WarrendOptions::default())?;
        node.start_warrend(&WarrendOptions { backend: Some("kernel"), ..WarrendOptions::default() })?;
        await_problem(node, "modprobe wireguard")?;
        ensure!(node.log().contains("--backend kernel waits for it"), "not said at start: {}", node.log());
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.silent()?;
        node.stop_warrend()?;
        node.start_warrend(&WarrendOptions::default())?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.sealed()?;
        Ok(())
    })
}

/// Waits until a node is not ready for this reason, and lives nevertheless.
pub fn await_problem(node: &Node, problem: &str) -> Result<()> {
    wait::until("the report", Duration::from_secs(10), || {
        let (code, said) = node.http("/readyz")?;
        ensure!(code == 503 && said.contains(problem), "{code}: {said}");
        Ok(())
    })?;
    let (code, said) = node.http("/livez")?;
    ensure!(code == 200, "{code}: {said}");
    Ok(())
}

/// All that Warren might have changed.
fn state(node: &Node) -> Result<String> {
    let mut state = String::new();
    for command in
        ["ip -brief link", "ip -4 rule", "ip -6 rule", "ip -4 route show table all", "nft list ruleset"]
    {
        state += &node.netns.sh(command)?;
    }
    Ok(state)
}
