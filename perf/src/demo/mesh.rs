//! A warrend on every node, until the mesh is up.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use warren_testkit::lab::{Lab, Node, WarrendOptions};
use warren_testkit::wait;

use crate::progress::Progress;

/// How long the mesh may take to come up. A few seconds suffice on two cores, also for many nodes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts warrend everywhere and waits until every node is ready and has shaken hands with every other.
pub fn start(lab: &Lab, progress: &Progress) -> Result<()> {
    lab.start_all(&WarrendOptions::default())?;
    progress.update("mesh", "warrend started");
    let all = lab.nodes.len();
    let mut up = 0;
    wait::until_with_progress(
        "the mesh",
        PATIENCE,
        || {
            // A node that was up stays up, or traffic will tell.
            while up < all {
                is_up(&lab.nodes[up], all - 1).with_context(|| format!("{up} of {all} nodes are up"))?;
                up += 1;
            }
            Ok(())
        },
        |_, reason| progress.update("mesh", &format!("{reason:#}")),
    )?;
    progress.done("mesh", &format!("warrend on {all} nodes, all ready, handshakes between all of them"));
    Ok(())
}

fn is_up(node: &Node, peers: usize) -> Result<()> {
    if node.warrend_pid().is_none() {
        bail!(
            "warrend on {} has ended: {}",
            node.name,
            node.log().lines().last().unwrap_or("without a word")
        );
    }
    node.ready()?;
    let status = node.status()?;
    ensure!(
        status.quarantined.is_empty(),
        "{} refuses {}: {}",
        node.name,
        status.quarantined[0].node,
        status.quarantined[0].reason
    );
    ensure!(status.peers.len() == peers, "{} has {} of {peers} peers", node.name, status.peers.len());
    let strangers = status.peers.iter().filter(|peer| peer.handshake_age.is_none()).count();
    // One whose first message came before its peer knew it tries again after 5 s, as WireGuard prescribes.
    ensure!(strangers == 0, "{} waits for the handshake with {strangers} of {peers} peers", node.name);
    Ok(())
}
