//! Starting, ending, being taken off a node, and failing in a way that the operator understands.

use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warren_testkit::lab::{Lab, Node, Plan, WarrendOptions, binary};
use warren_testkit::scenario::{self, Scenario};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::{process, wait};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("SIGTERM leaves tunnel, routes and guard in place", sigterm_leaves_everything),
    ("teardown takes everything off the node but the keys, and may be repeated", teardown_leaves_nothing),
    ("teardown leaves somebody else's TUN alone that has a tunnel's name", teardown_spares_others),
    ("a node that is as it should be is left alone", idle_changes_nothing),
    ("what the tunnel drops stands in the metrics", tunnel_counters),
    ("the private key is in no log, status or metric", secrets_stay_secret),
    ("keyctl shows the node's state, and says when there is no daemon to ask", keyctl),
    ("a key that others could read stops the start and names the remedy", exposed_key),
    ("a damaged key stops the start and is not replaced", damaged_key),
    ("a taken UDP port is reported, and used once it is free", taken_port),
    ("a taken HTTP port stops the start and names the remedy", taken_http),
    ("without nft the node is not ready and says which package is missing", without_nft),
    ("a node that the registry does not know says so, and joins once it does", unknown_node),
];

const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    scenario::run(&["ip", "nft", "ping"], SCENARIOS)
}

fn mesh() -> Result<Lab> {
    let lab = Lab::new(Plan { nodes: 2, pods: 1, ..Plan::default() })?;
    lab.start_all(&WarrendOptions::default())?;
    let up = || {
        for node in &lab.nodes {
            node.ready()?;
            let peers = node.status()?.peers;
            ensure!(peers.len() == 1 && peers[0].handshake_age.is_some(), "{}: {peers:?}", node.name);
        }
        Ok(())
    };
    wait::until("a mesh of two", SOON, up).with_context(|| lab.logs())?;
    Ok(lab)
}

fn alone() -> Result<Lab> {
    Lab::new(Plan { nodes: 1, pods: 0, ..Plan::default() })
}

fn talk(lab: &Lab) -> Result<()> {
    for ip in &lab.node(2).pods[0].ips {
        Ping::default().run(&lab.node(1).pods[0].netns, *ip)?.complete()?;
    }
    Ok(())
}

/// All of Warren's in a node's kernel, in the words of its tools.
fn kernel_state(node: &Node) -> Result<String> {
    let commands =
        ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip link"];
    let mut state = String::new();
    for command in commands.into_iter().chain(["nft list ruleset"]) {
        state += &node.netns.sh(command)?;
    }
    Ok(state)
}

fn sigterm_leaves_everything() -> Result<()> {
    let lab = mesh()?;
    let tunnel = lab.node(1).tunnel()?;
    for node in &lab.nodes {
        ensure!(node.stop_warrend()?.success(), "SIGTERM is no failure");
    }
    ensure!(lab.node(1).tunnel()? == tunnel);
    let state = kernel_state(lab.node(1))?;
    for word in ["table inet warren", "warren-a0", "lookup 5180", "unreachable"] {
        ensure!(state.contains(word), "{word} is gone: {state}");
    }
    talk(&lab)
}

fn teardown_leaves_nothing() -> Result<()> {
    let lab = mesh()?;
    let node = lab.node(1);
    node.stop_warrend()?;
    for time in ["first", "second"] {
        node.teardown().with_context(|| format!("the {time} time"))?;
        let state = kernel_state(node)?;
        for word in ["warren", "518", "proto 157"] {
            ensure!(!state.contains(word), "after the {time} teardown {word} is still there: {state}");
        }
        ensure!(node.tunnel().is_err(), "the tunnel is still there");
        ensure!(node.netns.pids_of("warren-tunnel")?.is_empty(), "warren-tunnel still runs");
    }
    ensure!(node.state_dir().join("key-0").exists(), "the key is gone");
    Ok(())
}

fn teardown_spares_others() -> Result<()> {
    let lab = mesh()?;
    let node = lab.node(1);
    node.stop_warrend()?;
    node.netns.ip("tuntap add dev warren-a7 mode tun\nlink set warren-a7 up")?;
    node.teardown()?;
    let links = node.netns.sh("ip -brief link")?;
    ensure!(links.contains("warren-a7") && !links.contains("warren-a0"), "there are {links}");
    Ok(())
}

fn idle_changes_nothing() -> Result<()> {
    let lab = Lab::new(Plan { nodes: 2, pods: 1, ..Plan::default() })?;
    lab.start_all(&WarrendOptions { resync: Some("100ms".into()), ..WarrendOptions::default() })?;
    let node = lab.node(1);
    let up = || {
        ensure!(node.status()?.peers.iter().any(|peer| peer.handshake_age.is_some()), "no peer yet");
        Ok(())
    };
    wait::until("a mesh of two", SOON, up)?;
    let looks = || -> Result<u64> {
        let metrics = node.metrics()?;
        let line = metrics.lines().find(|line| line.starts_with("warren_looks_total"));
        Ok(line.and_then(|line| line.rsplit(' ').next()).context("no warren_looks_total")?.parse()?)
    };
    let (before, log, manifest) = (looks()?, node.log(), fs::metadata(node.manifest_path())?.modified()?);
    wait::until("ten more looks", SOON, || {
        let more = looks()? - before;
        ensure!(more >= 10, "{more} so far");
        Ok(())
    })?;
    ensure!(node.log() == log, "the log grew: {}", &node.log()[log.len()..]);
    ensure!(fs::metadata(node.manifest_path())?.modified()? == manifest, "the manifest was written again");
    Ok(())
}

fn tunnel_counters() -> Result<()> {
    let lab = mesh()?;
    // In a mesh of both kinds, this one has a process; the kernel does not say what it drops.
    let node = lab.node(2);
    node.needs_tunnel_process()?;
    let metrics = node.metrics()?;
    // Before anything is counted, so that the first change is seen as one.
    for series in
        [r#"dropped_packets_total{reason="no_keys"} 0"#, r#"fallbacks_total{reason="run_refused"} 0"#]
    {
        ensure!(metrics.contains(&format!("\nwarren_tunnel_{series}\n")), "no {series}: {metrics}");
    }
    let invalid = || node.metric("warren_tunnel_dropped_packets_total{reason=\"invalid_message\"}");
    let before = invalid()?;
    let stranger = node.netns.run(|| UdpSocket::bind(("::", 0)))??;
    let port = warren_api::names::LISTEN_PORT;
    for _ in 0..3 {
        stranger.send_to(b"no message of WireGuard", (node.ips[0], port))?;
    }
    // What peers send to find out about the path may be among them.
    wait::until("what was dropped in the metrics", SOON, || {
        let now = invalid()?;
        ensure!(now >= before + 3, "{now}, and {before} before");
        Ok(())
    })
}

fn secrets_stay_secret() -> Result<()> {
    let lab = Lab::new(Plan { nodes: 2, pods: 1, ..Plan::default() })?;
    lab.start_all(&WarrendOptions { extra: vec!["--log".into(), "trace".into()], ..Default::default() })?;
    let node = lab.node(1);
    wait::until("a peer", SOON, || {
        ensure!(!node.status()?.peers.is_empty(), "no peer yet");
        Ok(())
    })?;
    node.netns.sh("ip link del warren-a0")?;
    wait::until("the repair", SOON, || node.tunnel())?;
    let key = fs::read_to_string(node.state_dir().join("key-0"))?;
    let base64 = key.trim();
    let hex = process::output_with_input(
        node.netns.command("sh").args(["-c", "base64 -d | od -An -tx1 -v"]),
        base64,
    )?;
    let hex: String = hex.split_whitespace().collect();
    ensure!(base64.len() == 44 && hex.len() == 64, "the test's own reading of the key is broken");
    for (place, text) in
        [("log", node.log()), ("status", node.http("/status")?.1), ("metrics", node.metrics()?)]
    {
        ensure!(!text.is_empty(), "nothing to look at in {place}");
        ensure!(!text.contains(base64) && !text.to_lowercase().contains(&hex), "the key is in the {place}");
    }
    Ok(())
}

fn keyctl() -> Result<()> {
    let lab = mesh()?;
    let node = lab.node(1);
    let status = || node.netns.command(binary("keyctl")?).arg("status").output().context("running keyctl");
    let output = status()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let key = node.status()?.public_key.to_string();
    for wanted in ["node-1 ready", key.as_str(), "node-2", "192.0.2."] {
        ensure!(text.contains(wanted), "{wanted} is missing: {text}");
    }
    ensure!(output.status.success(), "a ready node is no failure");
    node.stop_warrend()?;
    let output = status()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && text.contains("does warrend run here?"), "{text}");
    Ok(())
}

/// Starts warrend, which must fail, and returns what it logged.
fn fails_to_start(node: &Node) -> Result<String> {
    node.start_warrend(&WarrendOptions::default())?;
    let status = node.wait_warrend(SOON)?;
    ensure!(!status.success(), "it started");
    Ok(node.log())
}

fn exposed_key() -> Result<()> {
    let lab = alone()?;
    let node = lab.node(1);
    node.start_warrend(&WarrendOptions::default())?;
    wait::until("readiness", SOON, || node.ready())?;
    node.stop_warrend()?;
    fs::set_permissions(node.state_dir().join("key-0"), Permissions::from_mode(0o644))?;
    let log = fails_to_start(node)?;
    ensure!(log.contains("chmod 0600"), "{log}");
    Ok(())
}

fn damaged_key() -> Result<()> {
    let lab = alone()?;
    let node = lab.node(1);
    fs::create_dir_all(node.state_dir())?;
    fs::set_permissions(node.state_dir(), Permissions::from_mode(0o700))?;
    let key = node.state_dir().join("key-0");
    fs::write(&key, "half a ke")?;
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    let log = fails_to_start(node)?;
    ensure!(log.contains("damaged") && log.contains("key-0"), "{log}");
    ensure!(!log.contains("half a ke"), "the error shows the key: {log}");
    ensure!(fs::read_to_string(&key)? == "half a ke", "the damaged key was replaced");
    Ok(())
}

fn taken_port() -> Result<()> {
    let lab = alone()?;
    let node = lab.node(1);
    let squatter = node.netns.run(|| UdpSocket::bind(("::", 51820)))??;
    node.start_warrend(&WarrendOptions::default())?;
    wait::until("the report of the taken port", SOON, || {
        let (code, problems) = node.http("/readyz")?;
        ensure!(code == 503 && problems.contains("51820"), "{code}: {problems}");
        Ok(())
    })
    .with_context(|| node.log())?;
    ensure!(node.http("/livez")?.0 == 200, "a taken port is no reason to be restarted");
    drop(squatter);
    wait::until("readiness", SOON, || node.ready())
}

fn taken_http() -> Result<()> {
    let lab = alone()?;
    let node = lab.node(1);
    let _squatter = node.netns.run(|| std::net::TcpListener::bind(warren_api::names::HTTP))??;
    let log = fails_to_start(node)?;
    ensure!(log.contains("--http") && log.contains(warren_api::names::HTTP), "{log}");
    Ok(())
}

fn without_nft() -> Result<()> {
    let lab = alone()?;
    let node = lab.node(1);
    let mut command = node.netns.command(binary("warrend")?);
    command.args(["--node", &node.name, "--registry", &format!("dir:{}", lab.registry().display())]);
    command.arg("--state-dir").arg(node.state_dir()).env("PATH", "/nonexistent");
    let mut warrend = command.stderr(std::process::Stdio::null()).spawn()?;
    let result = wait::until("the report of the missing program", SOON, || {
        let (code, problems) = node.http("/readyz")?;
        ensure!(code == 503 && problems.contains("install the package nftables"), "{code}: {problems}");
        Ok(())
    });
    warrend.kill()?;
    warrend.wait()?;
    result
}

fn unknown_node() -> Result<()> {
    let lab = alone()?;
    let node = lab.node(1);
    let (home, away) = (node.manifest_path(), lab.registry().join("away"));
    fs::rename(&home, &away)?;
    node.start_warrend(&WarrendOptions::default())?;
    wait::until("the report of the missing Node", SOON, || {
        let (code, problems) = node.http("/readyz")?;
        ensure!(code == 503 && problems.contains(&node.name), "{code}: {problems}");
        Ok(())
    })?;
    fs::rename(&away, &home)?;
    wait::until("readiness", SOON, || node.ready())
}
