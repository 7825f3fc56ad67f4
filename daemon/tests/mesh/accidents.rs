//! What operators and other programs do to a node by hand. Whatever it is, nothing is in the clear, and it
//! is repaired within [`REPAIR`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::common::{Mesh, REPAIR, RESYNC, await_state, in_mesh, node_state, two_nodes};

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

pub fn others() -> Result<()> {
    in_mesh(two_nodes(), |mesh| {
        let peer = mesh.node(2).status()?.public_key;
        accident(mesh, &["ip link set warren-a0 down"])?;
        accident(mesh, &["ip address flush dev warren-a0"])?;
        accident(mesh, &["ip link set warren-a0 mtu 1280"])?;
        for change in ["remove", "allowed-ips 10.244.99.0/24", "persistent-keepalive 0"] {
            within(RESYNC, mesh, &[&format!("wg set warren-a0 peer {peer} {change}")])?;
        }
        within(RESYNC, mesh, &["wg set warren-a0 listen-port 40000"])?;
        accident(mesh, &["rm /run/wireguard/warren-a0.sock"])?;
        // A route that somebody adds beside the tunnel's, as a routing daemon might.
        accident(mesh, &["ip route add 10.244.2.0/24 via 192.0.2.2 dev eth0 table 5180 metric 1"])
    })
}

fn accident(mesh: &Mesh, commands: &[&str]) -> Result<()> {
    within(REPAIR, mesh, commands)
}

/// Has it happen to node 1 in mid-traffic.
fn within(limit: Duration, mesh: &Mesh, commands: &[&str]) -> Result<()> {
    let node = mesh.node(1);
    let before = node_state(node)?;
    let traffic = mesh.traffic()?;
    for command in commands {
        node.netns.sh(command)?;
    }
    let what = commands.join("; ");
    let repaired = await_state(node, &before, limit).with_context(|| format!("after `{what}`"))?;
    let damage = traffic.stop().with_context(|| format!("after `{what}`"))?;
    ensure!(damage.outage <= limit, "after `{what}` the outage lasted {:?}", damage.outage);
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
