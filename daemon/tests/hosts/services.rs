//! Services: what a client sends to an address or port that is nobody's own, and kube-proxy hands on to a pod.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::Families;
use warren_testkit::netns::Netns;

use crate::common::{Town, in_town, served_by, two_nodes};
use crate::exchange::{BOTH, exchange, refused};
use crate::kube_proxy::{self, Endpoint, MODES, Service};

/// Services with a pod on one of the nodes each.
const ON_ONE: u16 = 1;
const ON_TWO: u16 = 2;
const LOCAL_ON_TWO: u16 = 3;

fn services() -> [Service; 3] {
    let service = |number, node, local| Service { number, endpoints: vec![Endpoint::Pod(node, 2)], local };
    [service(ON_ONE, 1, false), service(ON_TWO, 2, false), service(LOCAL_ON_TWO, 2, true)]
}

fn service(number: u16) -> Service {
    services()[usize::from(number) - 1].clone()
}

/// Goes all paths without Warren, where each must work and be seen, and with it, for every kind of kube-proxy.
/// `frames` are those between nodes of one round over all paths, at least.
fn in_every_mode(frames: u64, paths: fn(&Town) -> Result<()>) -> Result<()> {
    for mode in MODES {
        in_town(two_nodes(), false, |town| {
            ensure!(town.lab.plan.overlay == Families::Dual, "the paths are of both families");
            for node in &town.lab.nodes {
                kube_proxy::install(mode, &town.lab, node, &services())?;
            }
            town.in_the_clear(|| paths(town)).context("without Warren")?;
            town.start(&[])?;
            town.encrypted(frames, || paths(town)).context("with Warren")
        })
        .with_context(|| format!("with kube-proxy {mode:?}"))?;
    }
    Ok(())
}

/// Over TCP and UDP; returns the client as the server saw it last.
fn both(from: &Netns, to: SocketAddr, town: &Town, endpoint: (usize, usize)) -> Result<IpAddr> {
    let server = served_by(town.pod(endpoint.0, endpoint.1), to.ip());
    let mut peer = to.ip();
    for protocol in BOTH {
        peer = exchange(protocol, from, to, &server)?;
    }
    Ok(peer)
}

pub fn by_cluster_ip() -> Result<()> {
    // Two families, two protocols, four paths, four frames each.
    in_every_mode(2 * 2 * 4 * 4, |town| {
        for ip in &town.node(1).ips {
            let (one, two) = (service(ON_ONE).cluster_ip(*ip), service(ON_TWO).cluster_ip(*ip));
            let seen = both(&town.pod(1, 1).netns, two, town, (2, 2)).context("a pod to a remote pod")?;
            ensure!(town.pod(1, 1).ips.contains(&seen), "the server sees {seen} for a pod");
            both(&town.node(1).netns, two, town, (2, 2)).context("a node to a remote pod")?;
            both(&town.pod(2, 1).netns, one, town, (1, 2)).context("the other way")?;
            both(&town.node(2).netns, one, town, (1, 2)).context("a node, the other way")?;
        }
        Ok(())
    })
}

pub fn by_node_port() -> Result<()> {
    in_every_mode(2 * 2 * 4 * 4, |town| {
        for family in 0..2 {
            let [one, two] = [1, 2].map(|number| town.node(number).ips[family]);
            let port = |ip, number| SocketAddr::new(ip, service(number).node_port());
            let client = town.client();
            both(client, port(one, ON_TWO), town, (2, 2)).context("outside to 1 to a pod on 2")?;
            both(client, port(two, ON_ONE), town, (1, 2)).context("outside to 2 to a pod on 1")?;
            both(client, port(two, ON_TWO), town, (2, 2)).context("outside to 2 to a pod there")?;
            let pod = &town.pod(1, 1).netns;
            both(pod, port(two, ON_TWO), town, (2, 2)).context("a pod on 1 to 2 to a pod there")?;
            both(pod, port(two, ON_ONE), town, (1, 2)).context("a pod on 1 to 2 and back to a pod on 1")?;
            let pod = &town.pod(2, 1).netns;
            both(pod, port(one, ON_TWO), town, (2, 2)).context("a pod on 2 to 1 and back to a pod on 2")?;
        }
        Ok(())
    })
}

/// Only the node with the pod answers, and the pod sees who asks.
pub fn local_policy() -> Result<()> {
    in_every_mode(2 * 2 * 4, |town| {
        for family in 0..2 {
            let [one, two] = [1, 2].map(|number| town.node(number).ips[family]);
            let port = |ip| SocketAddr::new(ip, service(LOCAL_ON_TWO).node_port());
            let seen = both(town.client(), port(two), town, (2, 2)).context("outside to 2")?;
            let outside = town.lab.plan.attacker_ips();
            ensure!(outside.contains(&seen), "the server sees {seen}, not the client {outside:?}");
            let server = served_by(town.pod(2, 2), two);
            // At once, since each waits in vain.
            std::thread::scope(|scope| {
                let tries = BOTH.map(|protocol| {
                    let server = &server;
                    scope.spawn(move || refused(protocol, town.client(), port(one), server))
                });
                tries.into_iter().try_for_each(|vain| vain.join().expect("an exchange does not panic"))
            })?;
            both(&town.pod(1, 1).netns, port(two), town, (2, 2)).context("a pod on 1 to 2")?;
        }
        Ok(())
    })
}
