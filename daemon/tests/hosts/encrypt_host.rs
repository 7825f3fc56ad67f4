//! `--encrypt-host`: what nodes' own programs send each other.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_api::status::Enforcement;
use warren_testkit::lab::{Lab, Node, Plan, WarrendOptions, write_atomically};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

use crate::common::{
    API_PORT, Town, floods, in_town, lost, options, ping, reach_node, served_by, served_by_node, two_nodes,
};
use crate::exchange::{Protocol, exchange, refused};
use crate::kube_proxy::{self, Endpoint, MODES, Service};

/// The label of nodes that run the API server.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// The label that leaves a node out.
const LABEL: &str = "warren.internal/encrypt-host";

/// Gives a Node a label, before Warren runs.
pub fn label(lab: &Lab, number: usize, name: &str, value: &str) -> Result<()> {
    let mut manifest = lab.node(number).manifest();
    manifest.labels.push((name.to_owned(), value.to_owned()));
    manifest.write(&lab.registry())
}

/// Three nodes, the last of them of the control plane, all with `--encrypt-host`.
pub fn in_encrypted_town(scenario: impl FnOnce(&Town) -> Result<()>) -> Result<()> {
    in_town(Plan::default(), true, |town| {
        label(&town.lab, 3, CONTROL_PLANE, "")?;
        town.start(&["--encrypt-host"])?;
        await_hosts(town, &[(1, 2), (1, 3), (2, 3)])?;
        scenario(town)
    })
}

/// Waits until these nodes lead each other's packets into tunnels.
pub fn await_hosts(town: &Town, pairs: &[(usize, usize)]) -> Result<()> {
    wait::until("--encrypt-host between all pairs", Duration::from_secs(10), || {
        for (here, there) in pairs.iter().flat_map(|(one, two)| [(*one, *two), (*two, *one)]) {
            ensure!(is_tunnelled(town, here, there)?, "not from {here} to {there}");
        }
        Ok(())
    })
}

fn is_tunnelled(town: &Town, here: usize, there: usize) -> Result<bool> {
    for ip in &town.node(there).ips {
        let route = town.node(here).netns.sh(&format!("ip route get {ip}"))?;
        if !route.contains("dev warren-") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// All that nodes do with each other: TCP, UDP, pings small and large, and ICMP errors.
fn between(town: &Town, pairs: &[(usize, usize)]) -> Result<()> {
    for (here, there) in pairs.iter().flat_map(|(one, two)| [(*one, *two), (*two, *one)]) {
        let (node, other) = (town.node(here), town.node(there));
        for ip in &other.ips {
            reach_node(&node.netns, other, *ip)
                .with_context(|| format!("{} to {}", node.name, other.name))?;
            let large = Ping { size: 3000, ..Ping::default() };
            large.run(&node.netns, *ip)?.complete().context("3000 bytes")?;
            // Nobody listens: an ICMP error.
            let nobody = served_by_node(node, node.ips[0], 9999);
            refused(Protocol::Udp, &node.netns, SocketAddr::new(*ip, 9998), &nobody)?;
        }
    }
    Ok(())
}

/// Services that programs of the nodes themselves serve, as an ingress controller on the hosts' network does, and
/// those of pods, from the nodes.
fn by_service(town: &Town) -> Result<()> {
    for family in 0..2 {
        let [one, two] = [1, 2].map(|number| town.node(number).ips[family]);
        let (host, pod) = (host_service(), pod_service());
        let server = served_by_node(town.node(2), two, 8081);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let node = &town.node(1).netns;
            exchange(protocol, node, host.cluster_ip(one), &server).context("a node to a node's Service")?;
            let port = SocketAddr::new(one, host.node_port());
            exchange(protocol, town.client(), port, &server).context("outside to 1 to 2")?;
            exchange(protocol, &town.pod(1, 1).netns, host.cluster_ip(one), &server)
                .context("a pod to a node")?;
            let server = served_by(town.pod(2, 2), two);
            exchange(protocol, node, pod.cluster_ip(one), &server).context("a node to a pod's Service")?;
            let port = SocketAddr::new(two, pod.node_port());
            exchange(protocol, node, port, &server).context("a node to another's NodePort")?;
            let node = &town.node(2).netns;
            let port = SocketAddr::new(one, pod.node_port());
            exchange(protocol, node, port, &server).context("a node to another's NodePort, and back")?;
        }
    }
    Ok(())
}

fn host_service() -> Service {
    Service { number: 1, endpoints: vec![Endpoint::Host(2, 8081)], local: false }
}

fn pod_service() -> Service {
    Service { number: 2, endpoints: vec![Endpoint::Pod(2, 2)], local: false }
}

pub fn everything() -> Result<()> {
    for mode in MODES {
        in_town(Plan::default(), true, |town| {
            const PAIRS: &[(usize, usize)] = &[(1, 2), (1, 3), (2, 3)];
            label(&town.lab, 3, CONTROL_PLANE, "")?;
            for node in &town.lab.nodes {
                kube_proxy::install(mode, &town.lab, node, &[host_service(), pod_service()])?;
            }
            town.in_the_clear(|| between(town, PAIRS)).context("without Warren")?;
            town.in_the_clear(|| by_service(town)).context("without Warren")?;
            town.start(&["--encrypt-host"])?;
            await_hosts(town, PAIRS)?;
            // Six directions, two families, pings, datagrams and segments.
            town.encrypted(6 * 2 * 20, || between(town, PAIRS))?;
            town.encrypted(2 * 2 * 6 * 2, || by_service(town))?;
            for node in &town.lab.nodes {
                node.netns.sh("ip -4 neigh flush all")?;
                node.netns.sh("ip -6 neigh flush all")?;
            }
            town.encrypted(6 * 2 * 20, || between(town, PAIRS)).context("with neighbours unknown again")
        })
        .with_context(|| format!("with kube-proxy {mode:?}"))?;
    }
    Ok(())
}

/// The API server on node 3, told by the node's label, or by its address.
pub fn api_server() -> Result<()> {
    for (how, mode) in [("label", MODES[0]), ("address", MODES[2])] {
        in_town(Plan::default(), true, |town| {
            let server = town.node(3);
            let addresses: Vec<String> = server.ips.iter().map(ToString::to_string).collect();
            let mut extra = vec!["--encrypt-host"];
            let addresses = addresses.join(",");
            match how {
                "label" => label(&town.lab, 3, CONTROL_PLANE, "")?,
                _ => extra.extend(["--api-servers", &addresses]),
            }
            // As `kubernetes.default`, by which whatever runs in a pod reaches the API server, warrend too.
            let kubernetes =
                Service { number: 1, endpoints: vec![Endpoint::Host(3, API_PORT)], local: false };
            for node in &town.lab.nodes {
                kube_proxy::install(mode, &town.lab, node, std::slice::from_ref(&kubernetes))?;
            }
            // One without a label is not believed to have the API server's address.
            if how == "label" {
                town.start(&extra)?;
                await_hosts(town, &[(1, 2), (1, 3), (2, 3)])?;
            } else {
                town.lab.start_all(&options(&extra))?;
                await_hosts(town, &[(1, 2)])?;
            }
            for ip in &server.ips {
                let api = served_by_node(server, *ip, API_PORT);
                for number in [1, 2] {
                    let node = town.node(number);
                    for to in [api.at, kubernetes.cluster_ip(*ip)] {
                        let seen = town.in_the_clear(|| exchange(Protocol::Tcp, &node.netns, to, &api))?;
                        ensure!(
                            node.ips.contains(&seen),
                            "{to}: the API server sees {seen} for {}",
                            node.name
                        );
                    }
                }
                if how == "label" {
                    // Nothing else of these nodes.
                    town.encrypted(20, || {
                        reach_node(&server.netns, town.node(1), town.node(1).ips[0])?;
                        reach_node(&town.node(1).netns, server, *ip)?;
                        exchange(Protocol::Udp, &town.node(1).netns, api.at, &api)?;
                        // Pods have a tunnel for it.
                        exchange(Protocol::Tcp, &town.pod(1, 1).netns, api.at, &api)?;
                        exchange(Protocol::Tcp, &town.pod(1, 1).netns, kubernetes.cluster_ip(*ip), &api)?;
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("told by {how}"))?;
    }
    Ok(())
}

/// 1 and 2 have the flag, 3 does not, and 4 is labelled out.
pub fn pairs() -> Result<()> {
    in_town(Plan { nodes: 4, ..Plan::default() }, true, |town| {
        label(&town.lab, 4, LABEL, "false")?;
        for node in &town.lab.nodes {
            let flag: &[&str] = if node.number == 3 { &[] } else { &["--encrypt-host"] };
            node.start_warrend(&options(flag))?;
        }
        town.await_up()?;
        await_hosts(town, &[(1, 2)])?;
        town.encrypted(2 * 2 * 20, || between(town, &[(1, 2)]))?;
        for pair in [(1, 3), (1, 4), (2, 3), (2, 4), (3, 4)] {
            town.in_the_clear(|| between(town, &[pair])).with_context(|| format!("{pair:?}"))?;
        }
        for (here, there) in [(1, 3), (3, 4), (4, 1)] {
            town.encrypted(12, || {
                for ip in &town.pod(there, 1).ips {
                    ping(&town.pod(here, 1).netns, *ip)?;
                }
                Ok(())
            })
            .context("pods, as ever")?;
        }

        let manifest = town.node(4).manifest_path();
        let text = fs::read_to_string(&manifest)?;
        let labelled_in: String = text
            .lines()
            .map(|line| if line.contains(LABEL) { line.replace("false", "true") } else { line.to_owned() } + "\n")
            .collect();
        ensure!(labelled_in != text, "the label is away");
        write_atomically(&manifest, labelled_in)?;
        await_hosts(town, &[(1, 4), (2, 4)])?;
        town.encrypted(4 * 2 * 20, || between(town, &[(1, 4), (2, 4)])).context("no longer left out")
    })
}

/// Switched on, restarted, killed and switched off: nothing is lost, and once it is on nothing is in the clear.
pub fn switching() -> Result<()> {
    in_town(two_nodes(), true, |town| {
        let restart = |number: usize, extra: &[&str]| {
            town.node(number).stop_warrend()?;
            town.node(number).start_warrend(&options(extra))
        };
        // Strict by the link's own filter, and by that of all: either is to be as before in the end.
        town.node(2).netns.sysctl(&[("net.ipv4.conf.eth0.rp_filter", "1")])?;
        town.start(&[])?;
        let before = filters(town)?;
        let mut directions = Vec::new();
        for (here, there) in [(1, 2), (2, 1)] {
            directions.extend(town.node(there).ips.iter().map(|ip| (&town.node(here).netns, *ip)));
            directions.extend(town.pod(there, 1).ips.iter().map(|ip| (&town.pod(here, 1).netns, *ip)));
        }
        let phase = |what: &str, act: &dyn Fn() -> Result<()>| -> Result<()> {
            let pings = floods(&directions)?;
            act()?;
            town.await_up()?;
            std::thread::sleep(Duration::from_millis(300));
            let (sent, lost) = lost(pings)?;
            ensure!(lost.is_empty(), "{what}: of {sent} pings were lost: {lost:#?}");
            println!("{what}: none of {sent} pings lost");
            Ok(())
        };
        phase("switched on", &|| {
            restart(1, &["--encrypt-host"])?;
            town.await_up()?;
            restart(2, &["--encrypt-host"])?;
            await_hosts(town, &[(1, 2)])
        })?;
        loosened(town, &before)?;
        town.silent().ok();
        phase("restarted and killed", &|| {
            restart(1, &["--encrypt-host"])?;
            town.await_up()?;
            town.node(2).kill_warrend()?;
            town.node(2).start_warrend(&options(&["--encrypt-host"]))
        })?;
        town.silent().context("after it was switched on")?;
        phase("switched off", &|| {
            restart(1, &[])?;
            town.await_up()?;
            restart(2, &[])?;
            wait::until("the end of --encrypt-host", Duration::from_secs(5), || {
                ensure!(!is_tunnelled(town, 1, 2)? && !is_tunnelled(town, 2, 1)?, "still tunnelled");
                Ok(())
            })
        })?;
        await_filters(town, &before)
    })
}

/// Taken off the nodes, in either way: their filters are as before.
pub fn taken_off() -> Result<()> {
    in_town(two_nodes(), true, |town| {
        town.node(2).netns.sysctl(&[("net.ipv4.conf.eth0.rp_filter", "1")])?;
        let before = filters(town)?;
        let up = || {
            town.start(&["--encrypt-host"])?;
            await_hosts(town, &[(1, 2)])?;
            loosened(town, &before)
        };
        up()?;
        for node in &town.lab.nodes {
            node.stop_warrend()?;
            node.teardown()?;
        }
        ensure!(filters(town)? == before, "teardown: they were {before:?}, and are {:?}", filters(town)?);

        up()?;
        for node in &town.lab.nodes {
            node.stop_warrend()?;
            let enforcement = Enforcement::Permissive;
            node.start_warrend(&WarrendOptions {
                enforcement,
                ..options(&["--encrypt-host", "--withdraw"])
            })?;
        }
        await_filters(town, &before).context("after --withdraw")
    })
}

/// The reverse-path filters of all nodes but those of the tunnels.
fn filters(town: &Town) -> Result<Vec<BTreeMap<String, String>>> {
    let of = |node: &Node| {
        let mut filters = node.reverse_path_filters()?;
        filters.retain(|interface, _| !interface.starts_with("warren-"));
        Ok(filters)
    };
    town.lab.nodes.iter().map(of).collect()
}

/// Fails unless the filters of the underlay's links, and no others, became loose.
fn loosened(town: &Town, before: &[BTreeMap<String, String>]) -> Result<()> {
    let mut expected = before.to_vec();
    expected.iter_mut().for_each(|filters| drop(filters.insert("eth0".to_owned(), "2".to_owned())));
    let found = filters(town)?;
    ensure!(found == expected, "they were {before:?}, and are {found:?}");
    Ok(())
}

fn await_filters(town: &Town, before: &[BTreeMap<String, String>]) -> Result<()> {
    wait::until("the filters of before", Duration::from_secs(10), || {
        let found = filters(town)?;
        ensure!(found == before, "they were {before:?}, and are {found:?}");
        Ok(())
    })
}
