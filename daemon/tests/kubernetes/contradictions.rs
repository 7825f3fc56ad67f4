//! Two daemons that claim one thing, and an operator who does not trust one: nobody obeys them, nothing is in the clear,
//! nobody else is disturbed, and all is well when it is over.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_api::annotations::QUARANTINE;
use warren_testkit::apiserver::real::Patch;
use warren_testkit::lab::{Plan, WarrendOptions};
use warren_testkit::wait;

use crate::cluster::{NEWS, await_quarantine, quarantine, three_nodes};
use crate::common::{Mesh, Traffic, await_talk, in_mesh, no_talk, talk};

/// Nodes 2 and 3 get into conflict; 1 and 4 have nothing to do with it.
fn four_nodes() -> Plan {
    Plan { nodes: 4, ..three_nodes() }
}

/// Node 3 is a copy of the disk of node 2, and with it of its key.
pub fn one_key() -> Result<()> {
    in_mesh(four_nodes(), |mesh| {
        let bystanders = bystanders(mesh)?;
        let [original, copy] = [mesh.node(2), mesh.node(3)];
        copy.stop_warrend()?;
        copy.kill_tunnel()?;
        std::fs::remove_dir_all(copy.state_dir())?;
        let copied = Command::new("cp").arg("-a").arg(original.state_dir()).arg(copy.state_dir()).status()?;
        ensure!(copied.success(), "the state cannot be copied: {copied}");
        copy.start_warrend(&WarrendOptions::default())?;
        nobody_believes_either(mesh, "public key")?;
        ensure!(copy.status()?.public_key == original.status()?.public_key, "the key is another");

        copy.stop_warrend()?;
        copy.kill_tunnel()?;
        std::fs::remove_dir_all(copy.state_dir())?;
        copy.start_warrend(&WarrendOptions::default())?;
        all_is_well(mesh, bystanders)
    })
}

/// Node 3 is registered anew, and is given the pod CIDRs of node 2.
pub fn one_pod_cidr() -> Result<()> {
    in_mesh(four_nodes(), |mesh| {
        let bystanders = bystanders(mesh)?;
        mesh.lab.unregister(3)?;
        mesh.lab.register(3, mesh.lab.spec(2))?;
        nobody_believes_either(mesh, "overlaps")?;

        mesh.lab.unregister(3)?;
        mesh.lab.register(3, mesh.lab.spec(3))?;
        all_is_well(mesh, bystanders)
    })
}

fn bystanders(mesh: &Mesh) -> Result<Traffic> {
    Traffic::start(&[(mesh.pod(1, 1), mesh.pod(4, 1)), (mesh.pod(4, 2), mesh.pod(1, 2))])
}

/// Nodes 2 and 3, each of which announces what is the other's as well.
fn nobody_believes_either(mesh: &Mesh, part: &str) -> Result<()> {
    for judge in [1, 4].map(|number| mesh.node(number)) {
        await_quarantine(judge, "node-2", part)?;
        await_quarantine(judge, "node-3", part)?;
    }
    await_quarantine(mesh.node(2), "node-3", part)?;
    await_quarantine(mesh.node(3), "node-2", part)?;
    for (from, to) in [(1, 2), (2, 1), (4, 3), (3, 4), (2, 3), (3, 2)] {
        no_talk(mesh.pod(from, 1), mesh.pod(to, 1))?;
    }
    mesh.sealed().map(drop).context("while they contradict each other")
}

fn all_is_well(mesh: &Mesh, bystanders: Traffic) -> Result<()> {
    mesh.await_up()?;
    for (from, to) in [(1, 2), (2, 1), (4, 3), (3, 4), (2, 3), (3, 2)] {
        await_talk(mesh.pod(from, 1), mesh.pod(to, 1), Duration::from_secs(10))?;
    }
    bystanders.stop()?.none().context("between the other nodes")?;
    mesh.sealed().map(drop)
}

/// An operator takes node 2 out, and back in, with the rights of the shipped role.
pub fn operators_quarantine() -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let bystanders =
            Traffic::start(&[(mesh.pod(1, 1), mesh.pod(3, 1)), (mesh.pod(3, 2), mesh.pod(1, 2))])?;
        let token = mesh.lab.token_of("warren-operator")?;
        let set = |value: Value| {
            let patch = json!({"metadata": {"annotations": {QUARANTINE: value}}});
            mesh.lab.api().client_with(&token).patch(&mesh.lab.node_path(2), Patch::Merge, &patch)?.ok()
        };
        set(json!("stolen at the airport"))?;
        for judge in [1, 3].map(|number| mesh.node(number)) {
            await_quarantine(judge, "node-2", "operator: \"stolen at the airport\"")?;
            wait::until("the end of the peer", NEWS, || {
                let peers = judge.status()?.peers;
                ensure!(peers.iter().all(|peer| peer.node != "node-2"), "{} still has it", judge.name);
                Ok(())
            })?;
        }
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        no_talk(mesh.pod(2, 1), mesh.pod(3, 1))?;
        mesh.sealed().context("while node 2 is in quarantine")?;

        set(Value::Null)?;
        mesh.await_up()?;
        for judge in [1, 3].map(|number| mesh.node(number)) {
            ensure!(quarantine(judge, "node-2")?.is_none(), "{} does not obey it", judge.name);
        }
        await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(10))?;
        talk(mesh.pod(2, 1), mesh.pod(3, 1))?;
        bystanders.stop()?.none().context("between the other nodes")?;
        mesh.sealed().map(drop)
    })
}
