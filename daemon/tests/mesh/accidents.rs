//! What operators and other programs do to a node by hand. Whatever it is, nothing is in the clear, and it
//! is repaired within [`REPAIR`].
//!
//! warrend is paused while it happens: so the damage is seen to be there, and traffic meets it for a while
//! before anybody repairs it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::{Backend, WarrendOptions};
use warren_testkit::wait;

use crate::common::{Mesh, REPAIR, await_state, in_lab, in_mesh, node_state, two_nodes};

/// How long nobody repairs what has happened.
const UNREPAIRED: Duration = Duration::from_millis(200);

pub fn interface_deleted() -> Result<()> {
    in_mesh(two_nodes(), |mesh| accident(mesh, &["ip link delete warren-a0"]))
}

pub fn routes_flushed() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        for table in ["5180", "5181"] {
            let flush = ["-4", "-6"].map(|family| format!("ip {family} route flush table {table}"));
            accident(mesh, &flush.each_ref().map(String::as_str))?;
        }
        Ok(())
    })
}

pub fn rules_flushed() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        accident(
            mesh,
            &[
                "ip -4 rule delete priority 5180",
                "ip -6 rule delete priority 5180",
                "ip -4 rule delete priority 5181",
                "ip -6 rule delete priority 5181",
            ],
        )?;
        // `flush` takes the kernel's own rules along, which are not Warren's to repair.
        let default = "ip -4 rule add priority 32767 lookup default";
        accident(mesh, &["ip -4 rule flush", "ip -4 rule add priority 32766 lookup main", default])?;
        accident(mesh, &["ip -6 rule flush", "ip -6 rule add priority 32766 lookup main"])
    })
}

pub fn guard_deleted() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        accident(mesh, &["nft delete table inet warren"])?;
        accident(mesh, &["nft flush table inet warren"])
    })
}

/// Nothing tells warrend of a change of the tunnel: the next resync finds it.
pub fn others() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        mesh.lab.start_all(&WarrendOptions { resync: Some("1s".into()), ..WarrendOptions::default() })?;
        mesh.await_up()?;
        let peer = mesh.node(2).status()?.public_key;
        accident(mesh, &["ip link set warren-a0 down"])?;
        accident(mesh, &["ip address flush dev warren-a0"])?;
        accident(mesh, &["ip link set warren-a0 mtu 1280"])?;
        for change in ["remove", "allowed-ips 10.244.99.0/24", "persistent-keepalive 0"] {
            accident(mesh, &[&format!("wg set warren-a0 peer {peer} {change}")])?;
        }
        accident(mesh, &["wg set warren-a0 listen-port 40000"])?;
        if mesh.node(1).backend == Backend::Userspace {
            accident(mesh, &["rm /run/wireguard/warren-a0.sock"])?;
        }
        // A route that somebody adds beside the tunnel's, as a routing daemon might.
        accident(mesh, &["ip route add 10.244.2.0/24 via 192.0.2.2 dev eth0 table 5180 metric 1"])
    })
}

/// Has it happen to node 1 in mid-traffic.
fn accident(mesh: &Mesh, commands: &[&str]) -> Result<()> {
    let node = mesh.node(1);
    let before = node_state(node)?;
    let traffic = mesh.traffic()?;
    let what = commands.join("; ");
    node.pause_warrend()?;
    for command in commands {
        node.netns.sh(command)?;
    }
    ensure!(node_state(node)? != before, "`{what}` did nothing");
    traffic.run_for(wait::patient(UNREPAIRED));
    node.resume_warrend()?;
    let repaired = await_state(node, &before, REPAIR).with_context(|| format!("after `{what}`"))?;
    let damage = traffic.stop().with_context(|| format!("after `{what}`"))?;
    ensure!(
        damage.outage <= wait::patient(UNREPAIRED + REPAIR),
        "after `{what}` the outage lasted {:?}",
        damage.outage
    );
    let report = mesh.sealed().with_context(|| format!("after `{what}`"))?;
    println!(
        "`{what}`: repaired after {} ms, {} of {} pings dropped over {} ms, 0 of {} packets in the clear",
        repaired.as_millis(),
        damage.lost,
        damage.sent,
        damage.outage.as_millis(),
        report.total()
    );
    Ok(())
}
