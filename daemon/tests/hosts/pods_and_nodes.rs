//! Pods and the addresses of other nodes, where programs of the nodes themselves live.

use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result};
use warren_testkit::lab::Plan;

use crate::common::{Town, in_town, ping, reach_node, served_by, two_nodes};
use crate::exchange::{BOTH, VAIN, exchange};
use crate::kube_proxy::{self, Endpoint, MODES, Service};

/// A pod and a node's own program reach each other both ways, whether the CNI masquerades pods or not, and whoever
/// writes kube-proxy's rules.
pub fn both_ways() -> Result<()> {
    for (mode, masquerade) in MODES.into_iter().zip([true, false, true]) {
        in_town(Plan { masquerade, ..two_nodes() }, false, |town| {
            let service = Service {
                number: 1,
                endpoints: vec![Endpoint::Pod(1, 1), Endpoint::Pod(2, 1)],
                local: false,
            };
            for node in &town.lab.nodes {
                kube_proxy::install(mode, &town.lab, node, std::slice::from_ref(&service))?;
            }
            town.in_the_clear(|| paths(town)).context("without Warren")?;
            town.start(&[])?;
            // Pings: 2 x 2 x 6 frames; each exchange: four at least.
            town.encrypted(60, || paths(town))
        })
        .with_context(|| format!("with kube-proxy {mode:?}, masquerade {masquerade}"))?;
    }
    Ok(())
}

fn paths(town: &Town) -> Result<()> {
    for (here, there) in [(1, 2), (2, 1)] {
        let (pod, node, other) = (town.pod(here, 1), town.node(here), town.node(there));
        for ip in &other.ips {
            reach_node(&pod.netns, other, *ip).with_context(|| format!("{} to {}", pod.name, other.name))?;
        }
        for ip in &town.pod(there, 1).ips {
            let server = served_by(town.pod(there, 1), *ip);
            for protocol in BOTH {
                exchange(protocol, &node.netns, server.at, &server)?;
            }
            ping(&node.netns, *ip)?;
            let own = node.ips.iter().find(|own| own.is_ipv4() == ip.is_ipv4()).context("no such family")?;
            from_address(town, here, *own, there, *ip)?;
        }
    }
    Ok(())
}

/// A node's program that insists on the node's own address as its source: a datagram and the answer.
fn from_address(town: &Town, here: usize, source: IpAddr, there: usize, ip: IpAddr) -> Result<()> {
    let pod = town.pod(there, 1);
    let server = pod.netns.run(|| UdpSocket::bind((ip, 9001)))??;
    let client = town.node(here).netns.run(|| UdpSocket::bind((source, 0)))??;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(VAIN * 5))?;
    }
    let mut buffer = [0; 100];
    client.send_to(warren_testkit::capture::CANARY, (ip, 9001))?;
    let (_, peer) = server.recv_from(&mut buffer).with_context(|| format!("from {source} to {ip}"))?;
    anyhow::ensure!(peer.ip() == source, "{ip} sees {peer} for {source}");
    server.send_to(warren_testkit::capture::CANARY, peer)?;
    client.recv_from(&mut buffer).with_context(|| format!("from {ip} back to {source}"))?;
    Ok(())
}
