//! Nodes that come, that are not there yet, and that go.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::{Plan, WarrendOptions};
use warren_testkit::wait;

use crate::common::{Traffic, await_talk, await_up, in_lab, in_mesh, no_talk, talk, two_nodes};

/// Node 1 has Warren. Node 2 stands in the registry and has not announced a key: it does not run Warren.
pub fn peer_without_a_key() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        node.start_warrend(&WarrendOptions::default())?;
        wait::until("warrend", Duration::from_secs(5), || {
            node.ready()?;
            ensure!(node.status()?.waiting == ["node-2"], "waits for {:?}", node.status()?.waiting);
            Ok(())
        })?;
        mesh.capture.reset()?;
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.silent().context("from the node with Warren")?;

        // Node 2 cannot be kept from sending in the clear; but no pod hears it, and none answers.
        no_talk(mesh.pod(2, 1), mesh.pod(1, 1))?;
        let report = mesh.capture.reset()?;
        ensure!(report.clear == 6, "three pings in each family were sent, {} packets seen", report.clear);
        let guard = mesh.node(1).status()?.guard;
        ensure!((guard.out_pod, guard.in_pod) == (0, 6) || guard.in_pod == 6, "{guard:?}");

        mesh.node(2).start_warrend(&WarrendOptions::default())?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        talk(mesh.pod(2, 1), mesh.pod(1, 1))?;
        mesh.sealed()?;
        Ok(())
    })
}

/// Three nodes start one after the other, in each of the six orders, and all at once; whoever has started
/// tries to reach everybody, all the time.
pub fn any_order_of_start() -> Result<()> {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        in_lab(Plan::default(), |mesh| {
            let mut attempts = Vec::new();
            for started in 1..=order.len() {
                let node = mesh.node(order[started - 1]);
                node.start_warrend(&WarrendOptions::default())?;
                wait::until("warrend", Duration::from_secs(5), || node.ready())?;
                for other in order.iter().filter(|other| **other != node.number) {
                    for ip in &mesh.pod(*other, 1).ips {
                        attempts.push(warren_testkit::traffic::ping::Flood::start_unanswered(
                            &node.pods[0].netns,
                            *ip,
                            wait::patient(Duration::from_millis(10)),
                        )?);
                    }
                }
                let up: Vec<_> = order[..started].iter().map(|number| mesh.node(*number)).collect();
                await_up(&up)?;
                mesh.silent()?;
            }
            for attempt in &mut attempts {
                attempt.await_answer(Duration::from_secs(5))?;
            }
            mesh.sealed()?;
            Ok(())
        })
        .with_context(|| format!("started in the order {order:?}"))?;
    }
    in_lab(Plan::default(), |mesh| {
        // Before its own Node is registered, a node can be no part of the mesh, but must not fail either.
        let late = mesh.node(3);
        fs::remove_file(late.manifest_path())?;
        mesh.lab.start_all(&WarrendOptions::default())?;
        await_up(&[mesh.node(1), mesh.node(2)])?;
        ensure!(late.ready().is_err(), "{} is ready without being registered", late.name);
        no_talk(mesh.pod(1, 1), mesh.pod(3, 1))?;
        mesh.silent()?;
        late.manifest().write(&mesh.lab.registry())?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(3, 1))?;
        talk(mesh.pod(3, 1), mesh.pod(2, 1))?;
        mesh.sealed()?;
        Ok(())
    })
    .context("all at once, one of them before its Node was registered")
}

/// Node 2 is taken out of the registry and comes back as a new machine would: no keys, no tunnel.
pub fn leaves_and_returns() -> Result<()> {
    in_mesh(Plan::default(), |mesh| {
        let bystanders =
            Traffic::start(&[(mesh.pod(1, 1), mesh.pod(3, 1)), (mesh.pod(3, 2), mesh.pod(1, 2))])?;
        let traffic = mesh.traffic()?;
        let node = mesh.node(2);
        let old = node.status()?.public_key;
        node.stop_warrend()?;
        fs::remove_file(node.manifest_path())?;
        for other in [1, 3].map(|number| mesh.node(number)) {
            wait::until("the end of the peer", Duration::from_secs(5), || {
                let peers = other.status()?.peers;
                ensure!(peers.iter().all(|peer| peer.node != node.name), "{} still has it", other.name);
                Ok(())
            })?;
        }
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        no_talk(mesh.pod(2, 1), mesh.pod(1, 1))?;
        mesh.sealed().context("while the node is away")?;

        let node = mesh.node(2);
        node.kill_tunnel()?;
        fs::remove_dir_all(node.state_dir())?;
        node.manifest().write(&mesh.lab.registry())?;
        node.start_warrend(&WarrendOptions::default())?;
        mesh.await_up()?;
        ensure!(node.status()?.public_key != old, "it returned with its old key");
        let back = await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(5))?;
        traffic.stop()?;
        bystanders.stop()?.none().context("between the other nodes")?;
        mesh.sealed().context("when the node returned")?;
        println!("pods answer {back:?} after the handshakes; between the other nodes nothing was lost");
        Ok(())
    })
}
