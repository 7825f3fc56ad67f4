//! Packets from the underlay that claim to be somebody's.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::WarrendOptions;
use warren_testkit::traffic::{inject, udp};

use crate::common::{Mesh, in_lab, two_nodes};

const PORT: u16 = 4000;
const PATIENCE: Duration = Duration::from_secs(2);

/// An attacker on the underlay sends packets with the source of a remote pod, a remote node, or a pod that
/// is nobody's yet. Without Warren they arrive; with it none does, and the guard has counted each.
pub fn from_the_underlay() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        for (what, source, destination) in forgeries(mesh)? {
            let mut receiver = udp::Receiver::listen(&mesh.pod(1, 1).netns, destination, PORT)?;
            forge(mesh, source, destination)?;
            receiver.expect("forged", PATIENCE).with_context(|| format!("{what}, without Warren"))?;
        }
        mesh.lab.start_all(&WarrendOptions::default())?;
        mesh.await_up()?;
        mesh.capture.reset()?;

        for (what, source, destination) in forgeries(mesh)? {
            let dropped = dropped(mesh)?;
            let mut receiver = udp::Receiver::listen(&mesh.pod(1, 1).netns, destination, PORT)?;
            forge(mesh, source, destination)?;
            // Sent later, through the tunnel: once it is here, the forged packet would be, too.
            udp::send(&mesh.pod(2, 1).netns, destination, PORT, "honest")?;
            receiver.expect("honest", PATIENCE)?;
            ensure!(
                !receiver.has("forged"),
                "a packet forged as from {what} ({source}) reached {destination}"
            );
            let counted = self::dropped(mesh)? - dropped;
            ensure!(counted == 1, "the guard counted {counted} packets for one from {what}");
            let seen = mesh.capture.reset()?;
            ensure!(seen.clear == 1, "the forged packet was not on the underlay: {seen:?}");
        }
        Ok(())
    })
}

/// (who, source, destination): forged for a pod of node 1, over both families.
fn forgeries(mesh: &Mesh) -> Result<Vec<(&'static str, IpAddr, IpAddr)>> {
    let victim = mesh.pod(1, 1);
    let mut forgeries = Vec::new();
    for (index, destination) in victim.ips.iter().enumerate() {
        forgeries.push(("a remote pod", mesh.pod(2, 1).ips[index], *destination));
        forgeries.push(("a remote node", mesh.node(2).ips[index], *destination));
        forgeries.push(("a pod of no node", mesh.lab.plan.pod_ips(77, 1)[index], *destination));
    }
    Ok(forgeries)
}

fn forge(mesh: &Mesh, source: IpAddr, destination: IpAddr) -> Result<()> {
    inject::forge(&mesh.lab.attacker, &mesh.node(1).netns, source, destination, PORT, "forged")
}

fn dropped(mesh: &Mesh) -> Result<u64> {
    let guard = mesh.node(1).status()?.guard;
    Ok(guard.in_pod + guard.in_node)
}
