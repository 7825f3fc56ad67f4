//! `--encrypt-host` when all is wrong, and when somebody wants around it.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_testkit::lab::Node;
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

use crate::common::{API_PORT, REPAIR, Town, no_ping, ping, served_by_node};
use crate::encrypt_host::{await_hosts, in_encrypted_town};
use crate::exchange::{Protocol, exchange};

/// What can be wrong on node 1, and whether warrend, which is stopped meanwhile, mends it by itself afterwards; else
/// what to do.
const WRONGS: &[(&str, &[&str], Option<&str>)] = &[
    ("an interface that was deleted", &["ip link delete warren-a0"], None),
    (
        "an interface of the same name that is somebody else's",
        &["ip link delete warren-a0", "ip link add warren-a0 type bridge", "ip link set warren-a0 up"],
        Some("ip link delete warren-a0"),
    ),
    ("a wrong key", &["wg set warren-a0 private-key KEY"], None),
    ("peers that are gone", &["wg set warren-a0 peer PEERS remove"], None),
    (
        "no routes",
        &["ip -4 route flush table 5182", "ip -6 route flush table 5182", "ip -4 route flush table 5180"],
        None,
    ),
    ("no rules", &["ip -4 rule delete priority 5183", "ip -6 rule delete priority 5183"], None),
    ("no guard", &["ip link delete warren-a0", "nft delete table inet warren"], None),
];

/// Whatever is wrong on node 1: it reaches the API server on node 3 and is reached from there, as is node 2; nothing
/// else of it is in the clear; and once warrend runs again, it is mended.
pub fn wrong_tunnels() -> Result<()> {
    in_encrypted_town(|town| {
        for (what, commands, remedy) in WRONGS {
            wrong(town, commands, *remedy).with_context(|| format!("with {what}"))?;
            println!("{what}: the API server in reach, nothing else in the clear, and mended");
        }
        Ok(())
    })
}

fn wrong(town: &Town, commands: &[&str], remedy: Option<&str>) -> Result<()> {
    let node = town.node(1);
    node.pause_warrend()?;
    commands.iter().try_for_each(|command| run(town, node, command))?;
    let others = [town.node(2), town.node(3)];
    town.silent()?;
    // At once, since each waits in vain.
    std::thread::scope(|scope| {
        let pairs = others.iter().flat_map(|other| [(node, *other), (*other, node)]);
        let directions = pairs.flat_map(|(here, there)| there.ips.iter().map(move |ip| (here, there, ip)));
        let tries: Vec<_> = directions
            .map(|(here, there, ip)| {
                scope.spawn(move || {
                    no_ping(&here.netns, *ip).with_context(|| format!("{} to {}", here.name, there.name))
                })
            })
            .collect();
        tries.into_iter().try_for_each(|vain| vain.join().expect("a ping does not panic"))
    })?;
    town.silent()?;
    api_server(town)?;
    town.capture.reset()?;
    node.resume_warrend()?;
    if let Some(remedy) = remedy {
        wait::until("the complaint", REPAIR, || {
            let error = node.ready().err().context("it says it is ready")?.to_string();
            ensure!(error.contains("warren-a0"), "it says {error}");
            Ok(())
        })?;
        api_server(town)?;
        town.capture.reset()?;
        run(town, node, remedy)?;
    }
    // Where both ends begin a handshake at once, WireGuard tries again only after 5 s (REKEY_TIMEOUT), with luck.
    wait::until("the repair", 3 * REPAIR, || {
        node.ready()?;
        for other in others {
            for ip in &other.ips {
                let once = Ping { patience: Duration::from_millis(200), ..Ping::of(1) };
                once.run(&node.netns, *ip)?.complete()?;
            }
        }
        Ok(())
    })?;
    await_hosts(town, &[(1, 2), (1, 3)])?;
    town.silent().map(drop)
}

/// Runs a command; `KEY` stands for the file of a new private key, `PEERS` for each of the other nodes' keys.
fn run(town: &Town, node: &Node, command: &str) -> Result<()> {
    if command.contains("KEY") {
        let file = node.state_dir().with_extension("wrong-key");
        fs::write(&file, node.netns.sh("wg genkey")?)?;
        return node.netns.sh(&command.replace("KEY", &file.display().to_string())).map(drop);
    }
    if !command.contains("PEERS") {
        return node.netns.sh(command).map(drop);
    }
    for other in [2, 3] {
        let key = town.node(other).status()?.public_key.to_string();
        node.netns.sh(&command.replace("PEERS", &key))?;
    }
    Ok(())
}

fn api_server(town: &Town) -> Result<()> {
    let server = town.node(3);
    for ip in &server.ips {
        let api = served_by_node(server, *ip, API_PORT);
        for number in [1, 2] {
            let node = town.node(number);
            town.in_the_clear(|| exchange(Protocol::Tcp, &node.netns, api.at, &api))
                .context("the API server")?;
        }
    }
    Ok(())
}

/// Programs with more rights than they should have, on node 1.
pub fn ways_around() -> Result<()> {
    in_encrypted_town(|town| {
        let node = town.node(1);
        for ip in town.node(2).ips.iter().chain(&town.node(3).ips) {
            // Marked by kube-proxy or portmap, or with every mark there is: capability NET_RAW is enough for that.
            for mark in ["0x4000", "0x8000", "0x2000", "0x80", "0x1000", "0x7fffffff"] {
                node.netns.sh(&pinging(&format!("-m {mark}"), *ip)).ok();
            }
            node.netns.sh(&pinging("-I eth0", *ip)).ok();
            let gateway = town.lab.plan.gateways(1).into_iter().find(|own| own.is_ipv4() == ip.is_ipv4());
            let gateway = gateway.context("no such family")?;
            node.netns.sh(&pinging(&format!("-I {gateway}"), *ip)).context("from the pods' gateway")?;
        }
        town.silent()?;
        // The tunnels' own packets are marked, or they would go around in circles.
        for ip in &town.node(2).ips {
            ping(&node.netns, *ip)?;
        }
        Ok(())
    })
}

fn pinging(options: &str, ip: IpAddr) -> String {
    format!("ping -n -c 2 -i 0.05 -W 0.2 {options} {ip}")
}
