//! What operators hear of without asking: Events on Nodes, as `kubectl describe node` shows them.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use warren_testkit::lab::{Lab, WarrendOptions, needs_kernel_wireguard};
use warren_testkit::{scenario, wait};

use crate::cluster::{NEWS, VISITOR, VISITORS_CIDR, await_quarantine, two_nodes, visit};
use crate::common::{in_lab, in_mesh, no_talk};

/// All Events about a Node, with this reason.
fn events(lab: &Lab, node: &str, reason: &str) -> Result<Vec<Value>> {
    let list = lab.api().client().get("/apis/events.k8s.io/v1/namespaces/default/events")?.ok()?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let wanted = |event: &Value| {
        let regarding = &event["regarding"];
        regarding["kind"] == "Node" && regarding["name"] == node && event["reason"] == reason
    };
    Ok(items.into_iter().filter(wanted).collect())
}

/// Waits for an Event and returns what it says.
fn await_event(lab: &Lab, node: &str, reason: &str, kind: &str) -> Result<String> {
    wait::until(&format!("an Event {reason} of {node}"), NEWS, || {
        let events = events(lab, node, reason)?;
        let [event] = &events[..] else { anyhow::bail!("there are {}", events.len()) };
        ensure!(event["type"] == kind, "its type is {}", event["type"]);
        let uid = lab.api().client().get(&format!("/api/v1/nodes/{node}"))?.ok()?["metadata"]["uid"].clone();
        ensure!(event["regarding"]["uid"] == uid, "it is about {}, not {uid}", event["regarding"]);
        Ok(event["note"].as_str().unwrap_or_default().to_owned())
    })
}

/// A node that is not obeyed, once, although two daemons see it; a key that changed.
pub fn quarantine_and_keys() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        visit(&mesh.lab, VISITORS_CIDR, |_| Some(json!({"version": 7})))?;
        for judge in &mesh.lab.nodes {
            await_quarantine(judge, VISITOR, "version 7")?;
        }
        let note = await_event(&mesh.lab, VISITOR, "NodeQuarantined", "Warning")?;
        ensure!(note.contains("version 7"), "the Event says {note:?}");

        // Node 2 loses its disk, and with it its key.
        let node = mesh.node(2);
        node.stop_warrend()?;
        node.kill_tunnel()?;
        fs::remove_dir_all(node.state_dir())?;
        node.start_warrend(&WarrendOptions::default())?;
        mesh.await_up()?;
        let note = await_event(&mesh.lab, "node-2", "KeyRotated", "Normal")?;
        ensure!(note.contains(&node.status()?.public_key.to_string()), "the Event says {note:?}");
        ensure!(events(&mesh.lab, VISITOR, "NodeQuarantined")?.len() == 1, "the quarantine was told twice");
        Ok(())
    })
}

/// Clear text that the guard stopped: node 2 runs no Warren, and its pods call.
pub fn clear_text() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        let options = WarrendOptions { resync: Some("1s".into()), ..WarrendOptions::default() };
        node.start_warrend(&options)?;
        wait::until("warrend", NEWS, || node.ready())?;
        no_talk(mesh.pod(2, 1), mesh.pod(1, 1))?;
        let note = await_event(&mesh.lab, "node-1", "ClearTextStopped", "Warning")?;
        ensure!(note.contains("stopped") && !note.contains("in from pods 0"), "the Event says {note:?}");
        println!("{note}");
        Ok(())
    })
}

/// A node that was to have its tunnels in the kernel, which has no WireGuard.
pub fn fallback() -> Result<()> {
    if needs_kernel_wireguard().is_ok() {
        return Err(scenario::not_run("this kernel has WireGuard, so nothing falls back"));
    }
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(1);
        node.start_warrend(&WarrendOptions { backend: Some("auto"), ..WarrendOptions::default() })?;
        wait::until("warrend", NEWS, || node.ready())?;
        let note = await_event(&mesh.lab, "node-1", "BackendFallback", "Warning")?;
        ensure!(note.contains("warren-tunnel carries the traffic"), "the Event says {note:?}");
        ensure!(node.status()?.fallback.is_some(), "its status says nothing of it");
        println!("{note}");
        Ok(())
    })
}
