//! A lab with a Kubernetes API server, and what the scenarios do to it and ask of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_api::annotations::{ANNOUNCEMENT, PREFIX};
use warren_testkit::apiserver::real::Patch;
use warren_testkit::lab::{Lab, Node, Plan, Registry};
use warren_testkit::wait;

use crate::common::Mesh;

/// How long a change may take to be known everywhere after the API server is back: the daemons wait between
/// attempts, up to twice as long as the server was away.
pub const RETURN: Duration = Duration::from_secs(60);

/// How long a change may take to be known everywhere otherwise.
pub const NEWS: Duration = Duration::from_secs(5);

/// A Node that no machine is behind. Its name, pod CIDR and address belong to nobody else.
pub const VISITOR: &str = "visitor";
pub const VISITORS_CIDR: &str = "10.244.100.0/24";
pub const VISITORS_ADDRESS: &str = "192.0.2.100";

/// Three nodes with two pods each.
pub fn three_nodes() -> Plan {
    Plan { registry: Registry::Kubernetes, ..Plan::default() }
}

/// Two nodes with two pods each.
pub fn two_nodes() -> Plan {
    Plan { nodes: 2, ..three_nodes() }
}

/// Registers the visitor, with an announcement or, as most nodes of most clusters, without one.
pub fn visit(lab: &Lab, cidr: &str, announcement: impl FnOnce(&Value) -> Option<Value>) -> Result<()> {
    let client = lab.api().client();
    let node = json!({"metadata": {"name": VISITOR}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
    let node = client.create("/api/v1/nodes", &node)?.ok()?;
    let path = format!("/api/v1/nodes/{VISITOR}");
    let addresses = json!([{"type": "InternalIP", "address": VISITORS_ADDRESS}]);
    let status = json!({"status": {"addresses": addresses}});
    client.patch(&format!("{path}/status"), Patch::Merge, &status)?.ok()?;
    if let Some(announcement) = announcement(&node) {
        let annotations = json!({ANNOUNCEMENT: announcement.to_string()});
        client.patch(&path, Patch::Merge, &json!({"metadata": {"annotations": annotations}}))?.ok()?;
    }
    Ok(())
}

/// Deletes the visitor's Node.
pub fn leave(lab: &Lab) -> Result<()> {
    lab.api().client().delete(&format!("/api/v1/nodes/{VISITOR}"))?.ok().map(drop)
}

/// Sets annotations of a Node by hand; null removes one.
pub fn annotate(lab: &Lab, number: usize, annotations: Value) -> Result<()> {
    let patch = json!({"metadata": {"annotations": annotations}});
    lab.api().client().patch(&lab.node_path(number), Patch::Merge, &patch)?.ok().map(drop)
}

/// Warren's annotations of a Node, as the API server has them.
pub fn annotations(lab: &Lab, number: usize) -> Result<BTreeMap<String, String>> {
    let node = lab.node_object(number)?;
    let all = node["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    Ok(all
        .into_iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned()))
        .collect())
}

/// The announcement of a node, as JSON.
pub fn announcement(lab: &Lab, number: usize) -> Result<Value> {
    let annotations = annotations(lab, number)?;
    let text = annotations.get(ANNOUNCEMENT).with_context(|| format!("node {number} announces nothing"))?;
    serde_json::from_str(text).with_context(|| format!("the announcement of node {number}: {text}"))
}

/// The keys of a Node's taints.
pub fn taints(lab: &Lab, number: usize) -> Result<Vec<String>> {
    let node = lab.node_object(number)?;
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    Ok(taints.iter().filter_map(|taint| taint["key"].as_str().map(str::to_owned)).collect())
}

/// Why `judge` does not obey `node`, if it does not.
pub fn quarantine(judge: &Node, node: &str) -> Result<Option<String>> {
    let quarantined = judge.status()?.quarantined;
    Ok(quarantined.into_iter().find(|it| it.node == node).map(|it| it.reason))
}

/// Waits until `judge` does not obey `node`, for a reason in which `part` occurs.
pub fn await_quarantine(judge: &Node, node: &str, part: &str) -> Result<()> {
    wait::until(&format!("the quarantine of {node} on {}", judge.name), NEWS, || {
        let reason = quarantine(judge, node)?.context("it is not in quarantine")?;
        ensure!(reason.contains(part), "the reason is {reason:?}, without {part:?}");
        Ok(())
    })
}

/// Waits until every daemon knows of a Node of this name that announces nothing, or of none; returns the time
/// it took.
pub fn await_known(mesh: &Mesh, name: &str, known: bool, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    wait::until(&format!("news of {name}"), limit, || {
        for node in &mesh.lab.nodes {
            let waiting = node.status()?.waiting;
            ensure!(waiting.iter().any(|it| it == name) == known, "{} waits for {waiting:?}", node.name);
        }
        Ok(start.elapsed())
    })
}

/// A change made now arrives everywhere: a Node appears, and goes. Returns how long the first took.
pub fn news_arrives(mesh: &Mesh, limit: Duration) -> Result<Duration> {
    visit(&mesh.lab, VISITORS_CIDR, |_| None)?;
    let took = await_known(mesh, VISITOR, true, limit)?;
    leave(&mesh.lab)?;
    await_known(mesh, VISITOR, false, NEWS)?;
    Ok(took)
}

/// Waits until all daemons say that they are, or are not, in contact with the API server.
pub fn await_contact(mesh: &Mesh, wanted: bool, limit: Duration) -> Result<()> {
    wait::until(if wanted { "contact" } else { "the loss of contact" }, limit, || {
        for node in &mesh.lab.nodes {
            let registry = node.status()?.registry.context("a status without registry")?;
            ensure!(registry.connected == wanted, "{}: {registry:?}", node.name);
        }
        Ok(())
    })
}
