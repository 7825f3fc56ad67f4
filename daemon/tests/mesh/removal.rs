//! Taking Warren off a cluster while its pods talk.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_api::status::Enforcement;
use warren_testkit::lab::{Node, Plan, WarrendOptions, write_atomically};
use warren_testkit::wait;

use crate::common::{Mesh, in_lab};

/// How long a change of settings may take: a few looks.
const SOON: Duration = Duration::from_secs(10);

/// Permissive everywhere, then withdrawn one after the other: no packet is lost, at the end none is encrypted, and
/// nothing of Warren's is left on any node while its daemon still runs. A strict node does not leave.
pub fn loses_nothing() -> Result<()> {
    in_lab(Plan { nodes: 3, ..Plan::default() }, |mesh| {
        for node in &mesh.lab.nodes {
            fs::create_dir_all(settings(node))?;
            let extra = vec!["--settings".into(), settings(node).display().to_string()];
            let resync = Some("200ms".to_owned());
            node.start_warrend(&WarrendOptions { extra, resync, ..WarrendOptions::default() })?;
        }
        mesh.await_up()?;
        mesh.capture.reset()?;
        let traffic = mesh.traffic()?;

        set(mesh.node(1), "withdraw", "true")?;
        wait::until("the refusal of a strict node to leave", SOON, || {
            let problems = mesh.node(1).status()?.problems.join("\n");
            ensure!(problems.contains("permissive"), "its problems are {problems:?}");
            Ok(())
        })?;
        set(mesh.node(1), "withdraw", "false")?;
        mesh.sealed()?;

        for node in &mesh.lab.nodes {
            set(node, "enforcement", "permissive")?;
        }
        for node in &mesh.lab.nodes {
            wait::until("permissive", SOON, || {
                ensure!(node.status()?.enforcement == Enforcement::Permissive, "{} is strict", node.name);
                node.ready()
            })?;
        }
        for node in &mesh.lab.nodes {
            set(node, "withdraw", "true")?;
            wait::until("the withdrawal", SOON, || {
                ensure!(node.status()?.withdrawn, "{} has not begun to leave", node.name);
                ensure!(!announces(mesh, node)?, "{} still announces", node.name);
                Ok(())
            })?;
        }
        for node in &mesh.lab.nodes {
            wait::until("an empty node", SOON, || nothing_left(node))?;
        }
        mesh.capture.reset()?;
        traffic.run_for(Duration::from_millis(200));
        traffic.stop()?.none()?;
        let report = mesh.capture.reset()?;
        ensure!(report.clear > 0 && report.wireguard_data == 0, "still encrypted: {report:?}");

        // And back.
        for node in &mesh.lab.nodes {
            fs::remove_dir_all(settings(node))?;
            fs::create_dir_all(settings(node))?;
        }
        mesh.await_up()?;
        mesh.capture.reset()?;
        mesh.traffic()?.stop()?.none()?;
        mesh.sealed()?;
        Ok(())
    })
}

fn settings(node: &Node) -> PathBuf {
    node.state_dir().with_extension("settings")
}

fn set(node: &Node, name: &str, value: &str) -> Result<()> {
    write_atomically(&settings(node).join(name), value)
}

fn announces(mesh: &Mesh, node: &Node) -> Result<bool> {
    let manifest = node.manifest().path(&mesh.lab.registry());
    Ok(fs::read_to_string(manifest)?.contains("warren.internal/"))
}

fn nothing_left(node: &Node) -> Result<()> {
    let ruleset = node.netns.sh("nft list tables")?;
    ensure!(!ruleset.contains("warren"), "{}: {ruleset}", node.name);
    for command in ["ip -4 rule show", "ip -6 rule show", "ip link show"] {
        let text = node.netns.sh(command)?;
        ensure!(!text.contains("518") && !text.contains("warren"), "{}: {text}", node.name);
    }
    Ok(())
}
