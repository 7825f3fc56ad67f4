//! Announcements written by hand: claims on what is another's, and garbage. Nobody obeys them, nobody else is
//! disturbed, and all is well when they are gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_api::annotations::ANNOUNCEMENT;
use warren_testkit::apiserver::real::Patch;
use warren_testkit::lab::{Families, Lab, Plan};
use warren_testkit::wait;

use crate::cluster::{
    NEWS, VISITOR, VISITORS_ADDRESS, VISITORS_CIDR, annotate, annotations, announcement, await_quarantine,
    leave, quarantine, three_nodes, two_nodes, visit,
};
use crate::common::{Mesh, Traffic, await_talk, in_mesh, no_talk};

/// How long a node may take to put its announcement right: until it is told, and until it is written.
const REPUBLISHED: Duration = Duration::from_secs(10);

/// A visitor with the key of node 2.
pub fn one_key_twice() -> Result<()> {
    contradiction(VISITORS_CIDR, "public key")
}

/// A visitor to whom the pod CIDR of node 2 was given, too, with a key of its own.
pub fn one_cidr_twice() -> Result<()> {
    contradiction("10.244.2.0/24", "10.244.2.0/24")
}

/// What is said of the visitor contradicts node 2: a third node believes neither, and goes on without them; node 2
/// knows itself, and goes on with all others.
fn contradiction(cidr: &str, part: &str) -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let bystanders =
            Traffic::start(&[(mesh.pod(1, 1), mesh.pod(3, 1)), (mesh.pod(3, 2), mesh.pod(1, 2))])?;
        let claim = claim(&mesh.lab, cidr)?;
        visit(&mesh.lab, cidr, |node| Some(signed(claim, node)))?;
        for judge in [1, 3].map(|number| mesh.node(number)) {
            await_quarantine(judge, VISITOR, part)?;
            await_quarantine(judge, "node-2", VISITOR)?;
        }
        await_quarantine(mesh.node(2), VISITOR, part)?;
        ensure!(mesh.node(2).status()?.peers.len() == 2, "node 2 gave up honest peers");
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        no_talk(mesh.pod(2, 1), mesh.pod(3, 1))?;
        mesh.sealed().context("while they contradict each other")?;

        leave(&mesh.lab)?;
        mesh.await_up().context("after the visitor left")?;
        await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(10))?;
        bystanders.stop()?.none().context("between the other nodes")?;
        mesh.sealed().map(drop)
    })
}

/// What the visitor announces: as node 2 does, on its own address.
fn claim(lab: &Lab, cidr: &str) -> Result<Value> {
    let mut claim = announcement(lab, 2)?;
    claim["node"] = json!(VISITOR);
    claim["podCIDRs"] = json!([cidr]);
    claim["endpoints"] = json!([VISITORS_ADDRESS]);
    if cidr != VISITORS_CIDR {
        // The base point of Curve25519: a key that nobody else has.
        claim["epochs"][0]["publicKey"] = json!("CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    }
    Ok(claim)
}

fn signed(mut claim: Value, node: &Value) -> Value {
    claim["uid"] = node["metadata"]["uid"].clone();
    claim
}

/// Somebody overwrites or removes what nodes say of themselves. The daemon puts it right; while it cannot, nobody
/// obeys what stands there.
pub fn garbled() -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let own = annotations(&mesh.lab, 2)?;
        let bystanders =
            Traffic::start(&[(mesh.pod(1, 1), mesh.pod(3, 1)), (mesh.pod(3, 2), mesh.pod(1, 2))])?;
        for (what, text, reason) in [
            ("text", json!("nothing to see here"), Some("malformed")),
            ("a later version", json!(r#"{"version":2}"#), Some("version 2")),
            ("nothing", Value::Null, None),
        ] {
            overwritten(mesh, &text, reason).with_context(|| format!("by {what}"))?;
            ensure!(annotations(&mesh.lab, 2)? == own, "by {what}: it is not as it was");
        }
        bystanders.stop()?.none().context("between the other nodes")?;

        // The key of node 3 on node 2 contradicts node 3 as well: for that time, node 1 believes neither.
        let mut claim = announcement(&mesh.lab, 2)?;
        claim["epochs"][0]["publicKey"] = announcement(&mesh.lab, 3)?["epochs"][0]["publicKey"].clone();
        overwritten(mesh, &json!(claim.to_string()), Some("public key")).context("by the key of node 3")?;
        await_talk(mesh.pod(1, 1), mesh.pod(3, 1), Duration::from_secs(10))?;
        mesh.sealed().map(drop)
    })
}

/// Overwrites the announcement of node 2 while its daemon cannot see it, and lets it see.
fn overwritten(mesh: &Mesh, text: &Value, reason: Option<&str>) -> Result<()> {
    let node = mesh.node(2);
    node.pause_warrend()?;
    annotate(&mesh.lab, 2, json!({ANNOUNCEMENT: text}))?;
    match reason {
        Some(reason) => await_quarantine(mesh.node(1), "node-2", reason)?,
        None => wait::until("the end of the announcement", NEWS, || {
            let waiting = mesh.node(1).status()?.waiting;
            ensure!(waiting == ["node-2"], "node 1 waits for {waiting:?}");
            Ok(())
        })?,
    }
    no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
    mesh.silent().context("while nobody obeys it")?;

    let start = Instant::now();
    node.resume_warrend()?;
    wait::until("the announcement as it was", REPUBLISHED, || {
        let now = announcement(&mesh.lab, 2)?;
        ensure!(now["node"] == "node-2" && json!(now.to_string()) != *text, "it stands as garbled");
        Ok(())
    })?;
    let republished = start.elapsed();
    mesh.await_up()?;
    ensure!(quarantine(mesh.node(1), "node-2")?.is_none(), "it is still in quarantine");
    let back = await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(10))?;
    println!("published again after {republished:.1?}, answers {back:.1?} after the handshakes");
    Ok(())
}

/// Another tool takes the announcement over by server-side apply. The daemon takes it back, and owns it again.
pub fn taken_over() -> Result<()> {
    // On Nodes with two InternalIPs, servers before 1.29 keep no account of owners (kubernetes#121896).
    in_mesh(Plan { underlay: Families::V4, overlay: Families::V4, ..two_nodes() }, |mesh| {
        ensure!(owners(&mesh.lab, 2)? == ["warrend"], "it is owned by {:?}", owners(&mesh.lab, 2)?);
        let own = annotations(&mesh.lab, 2)?;
        let theirs = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-2", "annotations": {ANNOUNCEMENT: "theirs"}},
        });
        let (client, path) = (mesh.lab.api().client(), mesh.lab.node_path(2));
        let refused = client.patch(&path, Patch::Apply("another-tool"), &theirs)?;
        ensure!(refused.status == 409, "no conflict: {}", refused.text);
        client.patch(&format!("{path}?force=true"), Patch::Apply("another-tool"), &theirs)?.ok()?;
        wait::until("the announcement as it was", REPUBLISHED, || {
            ensure!(annotations(&mesh.lab, 2)? == own, "it is not as it was");
            Ok(())
        })?;
        ensure!(owners(&mesh.lab, 2)? == ["warrend"], "it is owned by {:?}", owners(&mesh.lab, 2)?);
        mesh.await_up()?;
        await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(10))?;
        mesh.sealed().map(drop)
    })
}

/// The field managers that own the announcement of a Node.
fn owners(lab: &Lab, number: usize) -> Result<Vec<String>> {
    let node = lab.node_object(number)?;
    let entries = node["metadata"]["managedFields"].as_array().context("no managedFields")?;
    let owns = |entry: &&Value| {
        entry["fieldsV1"]["f:metadata"]["f:annotations"].get(format!("f:{ANNOUNCEMENT}")).is_some()
    };
    Ok(entries.iter().filter(owns).filter_map(|entry| entry["manager"].as_str().map(str::to_owned)).collect())
}

/// The same while the daemon runs: it is put right before long, and neighbours that had no time to react lose
/// nothing.
pub fn removed() -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let own = annotations(&mesh.lab, 2)?;
        for name in own.keys() {
            let start = Instant::now();
            annotate(&mesh.lab, 2, json!({name: null}))?;
            wait::until(&format!("{name} again"), REPUBLISHED, || {
                ensure!(annotations(&mesh.lab, 2)? == own, "it is not as it was");
                Ok(())
            })?;
            println!("{name} stood again after {:.1?}", start.elapsed());
        }
        mesh.await_up()?;
        await_talk(mesh.pod(1, 1), mesh.pod(2, 1), Duration::from_secs(10))?;
        mesh.sealed().map(drop)
    })
}
