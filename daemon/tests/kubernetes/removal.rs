//! Taking Warren off a cluster while its pods talk, as `manifests/README.md` tells.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_api::status::Enforcement;
use warren_testkit::lab::{Node, WarrendOptions, write_atomically};
use warren_testkit::wait;

use crate::cluster::{annotations, three_nodes};
use crate::common::in_lab;

/// How long a change of settings may take: a few looks.
const SOON: Duration = Duration::from_secs(10);

/// Permissive everywhere, then withdrawn one after the other, with the rights of the shipped role: no packet is lost, no
/// Node is announced at the end, and nothing of Warren's is left on any node while its daemon still runs.
pub fn loses_nothing() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        for node in &mesh.lab.nodes {
            fs::create_dir_all(settings(node))?;
            let extra = vec!["--settings".into(), settings(node).display().to_string()];
            let resync = Some("200ms".to_owned());
            node.start_warrend(&WarrendOptions { extra, resync, ..WarrendOptions::default() })?;
        }
        mesh.await_up()?;
        mesh.capture.reset()?;
        let traffic = mesh.traffic()?;
        for node in &mesh.lab.nodes {
            set(node, "enforcement", "permissive")?;
        }
        for node in &mesh.lab.nodes {
            wait::until("permissive", SOON, || {
                ensure!(node.status()?.enforcement == Enforcement::Permissive, "{} is strict", node.name);
                node.ready()
            })?;
        }
        mesh.sealed()?;
        for node in &mesh.lab.nodes {
            set(node, "withdraw", "true")?;
            wait::until("the withdrawal", SOON, || {
                ensure!(node.status()?.withdrawn, "{} has not begun to leave", node.name);
                let left = annotations(&mesh.lab, node.number)?;
                ensure!(left.is_empty(), "{} still announces {left:?}", node.name);
                Ok(())
            })?;
        }
        for node in &mesh.lab.nodes {
            wait::until("an empty node", SOON, || {
                ensure!(node.log().contains("has left the mesh"), "{} does not say that it has", node.name);
                nothing_left(node)
            })?;
        }
        mesh.capture.reset()?;
        traffic.run_for(Duration::from_millis(200));
        traffic.stop()?.none()?;
        let report = mesh.capture.reset()?;
        ensure!(report.clear > 0 && report.wireguard_data == 0, "still encrypted: {report:?}");
        Ok(())
    })
}

fn settings(node: &Node) -> PathBuf {
    node.state_dir().with_extension("settings")
}

fn set(node: &Node, name: &str, value: &str) -> Result<()> {
    write_atomically(&settings(node).join(name), value)
}

fn nothing_left(node: &Node) -> Result<()> {
    for command in ["nft list tables", "ip -4 rule show", "ip -6 rule show", "ip link show"] {
        let text = node.netns.sh(command)?;
        ensure!(!text.contains("518") && !text.contains("warren"), "{}: {text}", node.name);
    }
    Ok(())
}
