//! Nodes that find each other through the API server, and what is to be seen of it there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use warren_api::annotations::{ANNOUNCEMENT, BACKEND, EPOCH, PREFIX, PUBLIC_KEY};
use warren_testkit::apiserver::real::Patch;
use warren_testkit::lab::{STARTUP_TAINT, WarrendOptions, host};
use warren_testkit::wait;

use crate::cluster::{NEWS, RETURN, annotations, await_contact, taints, three_nodes, two_nodes};
use crate::common::{Mesh, Traffic, await_talk, await_up, in_lab, in_mesh, no_talk, talk};

/// Three daemons with the tokens of their own Pods.
pub fn find_each_other() -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        for (from, to) in [(1, 2), (2, 3), (3, 1)] {
            talk(mesh.pod(from, 1), mesh.pod(to, 2))?;
            talk(mesh.pod(to, 1), mesh.pod(from, 2))?;
        }
        let report = mesh.sealed()?;
        for node in &mesh.lab.nodes {
            what_the_api_shows(mesh, node.number).with_context(|| format!("of {}", node.name))?;
        }
        let version = mesh.lab.api().version()?;
        println!("{version}: 3 nodes, {} packets encrypted, 0 in the clear", report.wireguard_data);
        Ok(())
    })
}

/// The Node as `kubectl get node -o yaml` shows it.
fn what_the_api_shows(mesh: &Mesh, number: usize) -> Result<()> {
    let node = mesh.node(number);
    let status = node.status()?;
    let object = mesh.lab.node_object(number)?;
    let annotations = annotations(&mesh.lab, number)?;
    let names: Vec<&str> = annotations.keys().map(String::as_str).collect();
    let mut expected = [ANNOUNCEMENT, PUBLIC_KEY, EPOCH, BACKEND];
    expected.sort_unstable();
    ensure!(names == expected, "the annotations under {PREFIX} are {names:?}");
    ensure!(annotations[PUBLIC_KEY] == status.public_key.to_string(), "another key than in /status");
    ensure!(annotations[EPOCH] == "0" && annotations[BACKEND] == "userspace", "{annotations:?}");

    let announcement = warren_api::Announcement::parse(&annotations[ANNOUNCEMENT])?;
    ensure!(announcement.node == node.name && announcement.pod_cidrs == node.pod_cidrs, "{announcement:?}");
    ensure!(announcement.uid == object["metadata"]["uid"], "the announcement is of another Node");
    Ok(())
}

/// The daemons are there first. The API server comes late.
pub fn before_the_api_server() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let api = mesh.lab.api();
        api.kill()?;
        mesh.lab.start_all(&WarrendOptions::default())?;
        await_contact(mesh, false, NEWS)?;
        for node in &mesh.lab.nodes {
            ensure!(node.ready().is_err(), "{} is ready without knowing anything", node.name);
        }
        mesh.capture.reset()?;
        api.restart()?;
        await_contact(mesh, true, RETURN)?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        talk(mesh.pod(2, 1), mesh.pod(1, 1))?;
        mesh.sealed().map(drop)
    })
}

/// Node 3 runs no Warren, as nodes of another operating system may not.
pub fn without_warren() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        let others = [mesh.node(1), mesh.node(2)];
        others.iter().try_for_each(|node| node.start_warrend(&WarrendOptions::default()))?;
        await_up(&others)?;
        mesh.capture.reset()?;
        for node in others {
            ensure!(node.status()?.waiting == ["node-3"], "waits for {:?}", node.status()?.waiting);
        }
        no_talk(mesh.pod(1, 1), mesh.pod(3, 1))?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.sealed()?;
        ensure!(taints(&mesh.lab, 3)?.iter().any(|taint| taint == STARTUP_TAINT), "who removed the taint?");

        mesh.node(3).start_warrend(&WarrendOptions::default())?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(3, 1))?;
        mesh.sealed().map(drop)
    })
}

/// The kubelet registers node 3; the controller manager gives it pod CIDRs later.
pub fn late_pod_cidrs() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        let spec = mesh.lab.spec(3);
        mesh.lab.unregister(3)?;
        mesh.lab.register(3, json!({"taints": spec["taints"]}))?;
        mesh.capture.reset()?;
        mesh.lab.start_all(&WarrendOptions::default())?;
        await_up(&[mesh.node(1), mesh.node(2)])?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        no_talk(mesh.pod(1, 1), mesh.pod(3, 1)).context("before node 3 has pod CIDRs")?;

        let patch = json!({"spec": {"podCIDR": spec["podCIDR"], "podCIDRs": spec["podCIDRs"]}});
        mesh.lab.api().client().patch(&mesh.lab.node_path(3), Patch::Merge, &patch)?.ok()?;
        mesh.await_up().context("after node 3 got pod CIDRs")?;
        talk(mesh.pod(1, 1), mesh.pod(3, 1))?;
        talk(mesh.pod(3, 2), mesh.pod(2, 2))?;
        Ok(())
    })
}

/// Node 2 is cordoned and uncordoned, as for maintenance.
pub fn cordoned() -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let traffic = mesh.traffic()?;
        let before = annotations(&mesh.lab, 2)?;
        let client = mesh.lab.api().client();
        for cordoned in [true, false] {
            let patch = json!({"spec": {"unschedulable": cordoned}});
            client.patch(&mesh.lab.node_path(2), Patch::Strategic, &patch)?.ok()?;
            let labels = json!({"metadata": {"labels": {"maintenance": cordoned.to_string()}}});
            client.patch(&mesh.lab.node_path(2), Patch::Merge, &labels)?.ok()?;
            // What is made later is known later: then the daemons have seen the cordon.
            crate::cluster::news_arrives(mesh, NEWS)?;
        }
        traffic.stop()?.none()?;
        ensure!(annotations(&mesh.lab, 2)? == before, "node 2 announces something else");
        mesh.await_up()?;
        mesh.sealed().map(drop)
    })
}

/// Node 2 is deleted and made anew under its name while its daemon runs, as when a kubelet registers again.
pub fn made_anew() -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let bystanders =
            Traffic::start(&[(mesh.pod(1, 1), mesh.pod(3, 1)), (mesh.pod(3, 2), mesh.pod(1, 2))])?;
        let before = mesh.lab.node_object(2)?["metadata"]["uid"].clone();
        mesh.lab.unregister(2)?;
        for other in [1, 3].map(|number| mesh.node(number)) {
            wait::until("the end of the peer", NEWS, || {
                let peers = other.status()?.peers;
                ensure!(peers.iter().all(|peer| peer.node != "node-2"), "{} still has it", other.name);
                Ok(())
            })?;
        }
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.sealed().context("while there is no such Node")?;

        mesh.lab.register(2, mesh.lab.spec(2))?;
        ensure!(mesh.lab.node_object(2)?["metadata"]["uid"] != before, "it is the same Node");
        mesh.await_up().context("after the Node was made anew")?;
        what_the_api_shows(mesh, 2).context("of the new Node")?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        wait::until("the end of the startup taint", NEWS, || {
            let taints = taints(&mesh.lab, 2)?;
            ensure!(!taints.iter().any(|taint| taint == STARTUP_TAINT), "the taints are {taints:?}");
            Ok(())
        })?;

        another_cidr(mesh)?;
        bystanders.stop()?.none().context("between the other nodes")?;
        mesh.sealed().map(drop)
    })
}

/// Node 2 is made anew once more, and gets other pod CIDRs.
fn another_cidr(mesh: &Mesh) -> Result<()> {
    let cidrs = mesh.lab.plan.pod_cidrs(22);
    let mut spec = mesh.lab.spec(2);
    spec["podCIDR"] = json!(cidrs[0]);
    spec["podCIDRs"] = json!(cidrs);
    mesh.lab.unregister(2)?;
    mesh.lab.register(2, spec)?;

    // The CNI plugin gives the next pods addresses of the new range.
    let (node, pod) = (mesh.node(2), mesh.pod(2, 1));
    for cidr in &cidrs {
        node.netns.ip(&format!("address add {}/{} dev cni0", host(*cidr, 1), cidr.prefix_len()))?;
        pod.netns.ip(&format!("address add {}/{} dev eth0", host(*cidr, 11), cidr.prefix_len()))?;
    }
    mesh.await_up().context("with other pod CIDRs")?;
    let from = mesh.pod(1, 1);
    for cidr in cidrs {
        let ip = host(cidr, 11);
        wait::until(&format!("an answer from {ip}"), Duration::from_secs(5), || {
            let ping = warren_testkit::traffic::ping::Ping { count: 1, ..Default::default() };
            ping.run(&from.netns, ip)?.complete()
        })?;
    }
    mesh.sealed().context("with other pod CIDRs")?;
    // The old range is node 2's no more, and nobody's: what is sent there goes nowhere in the clear.
    no_talk(from, mesh.pod(2, 2))?;
    mesh.silent().context("to the old range")?;

    mesh.lab.unregister(2)?;
    mesh.lab.register(2, mesh.lab.spec(2))?;
    mesh.await_up().context("with the first pod CIDRs again")?;
    await_talk(from, mesh.pod(2, 2), Duration::from_secs(5)).map(drop)
}
