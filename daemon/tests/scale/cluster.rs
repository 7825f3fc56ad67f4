//! A node in a namespace, and an API server in another that knows 4,999 more.
//!
//! ```text
//!   node: warrend, warren-tunnel                control plane: the fake API server
//!   cni0 10.0.1.1, fd00:10:1::1
//!   eth0 172.16.0.1, fd77::1 ──────────────── eth0 172.16.255.250, fd77::ffff, which drops what is for others
//! ```
//!
//! The others are reached through a gateway, as in a cluster of this size. On one link each would have a place in the
//! kernel's table of neighbours, which all namespaces of a machine share and which holds 1,024 (`gc_thresh3`, arp(7)).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use warren_api::{PublicKey, annotations, names};
use warren_testkit::announced::{self, random_key};
use warren_testkit::apiserver::fake::{ApiServer, NodeSpec, Options};
use warren_testkit::netns::Netns;
use warren_testkit::wait;

use crate::daemon::Daemon;
use crate::release::binary;

/// The nodes of the cluster.
pub const NODES: u16 = 5000;

/// Where the API server is, and the way to all others.
const GATEWAY: &str = "172.16.255.250";
const GATEWAY6: &str = "fd77::ffff";

pub struct Cluster {
    pub api: ApiServer,
    node: Netns,
    /// The API server's, which lives as long as it.
    _control_plane: Netns,
    home: TempDir,
}

impl Cluster {
    /// A cluster in which all nodes but the first have announced themselves.
    pub fn new() -> Result<Self> {
        let (node, control_plane) = (Netns::new("node")?, Netns::new("control-plane")?);
        for netns in [&node, &control_plane] {
            netns.sysctl(&[("net.ipv6.conf.default.accept_dad", "0")])?;
        }
        node.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\n\
             link set eth0 up\n\
             address add 172.16.0.1/32 dev eth0\n\
             address add fd77::1/128 dev eth0\n\
             route add {GATEWAY}/32 dev eth0\n\
             route add 172.16.0.0/16 via {GATEWAY}\n\
             route add {GATEWAY6}/128 dev eth0\n\
             route add fd77::/64 via {GATEWAY6}\n\
             link add cni0 type bridge\n\
             link set cni0 up\n\
             address add 10.0.1.1/24 dev cni0\n\
             address add fd00:10:1::1/64 dev cni0",
            control_plane.name()
        ))?;
        control_plane.ip(&format!(
            "link set eth0 up\naddress add {GATEWAY}/16 dev eth0\naddress add {GATEWAY6}/64 dev eth0"
        ))?;
        let api = ApiServer::start(&control_plane, format!("{GATEWAY}:6443").parse()?, Options::default())?;
        let mut specs = vec![spec(1)];
        for number in 2..=NODES {
            specs.push(announced(number)?.0);
        }
        api.add_nodes(&specs)?;
        let home = tempfile::tempdir()?;
        fs::write(home.path().join("kubeconfig"), api.kubeconfig())?;
        Ok(Self { api, node, _control_plane: control_plane, home })
    }

    /// Starts the daemon and waits until it says that all is in place; returns how long that took.
    pub fn start(&self) -> Result<(Duration, Daemon)> {
        let mut command = self.node.command(binary("warrend")?);
        command.args(["--node", &spec(1).name, "--node-cidrs", "172.16.0.0/16,fd77::/64"]);
        command
            .arg("--registry")
            .arg(format!("kubernetes:{}", self.home.path().join("kubeconfig").display()));
        command.arg("--state-dir").arg(self.home.path().join("state"));
        let log = File::create(self.home.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let start = Instant::now();
        let daemon = Daemon(command.spawn().context("starting warrend")?);
        let converged = wait::until("convergence", Duration::from_secs(60), || {
            let answer = self.probe("/readyz")?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "warrend is not ready: {answer}");
            Ok(start.elapsed())
        });
        let log = || fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        Ok((converged.with_context(log)?, daemon))
    }

    /// Fails unless every node has its peer, its routes, and its places in the guard.
    pub fn full_state(&self, daemon: &Daemon) -> Result<String> {
        let others = usize::from(NODES) - 1;
        let peers = self.tunnel()?.matches("public_key=").count();
        ensure!(peers == others, "{peers} peers");
        let mut routes = 0;
        for family in ["-4", "-6"] {
            for table in [names::PODS_TABLE, names::NODES_TABLE] {
                let lines = self.node.sh(&format!("ip {family} route show table {table}"))?.lines().count();
                ensure!(lines == 2 * others, "{lines} routes {family} in table {table}");
                routes += lines;
            }
        }
        let guard = self.node.sh(&format!("nft -j list table inet {}", names::GUARD_TABLE))?;
        let guard: serde_json::Value = serde_json::from_str(&guard)?;
        let mut networks = 0;
        for set in guard["nftables"].as_array().into_iter().flatten().map(|object| &object["set"]) {
            let size = set["elem"].as_array().map_or(0, Vec::len);
            let name = set["name"].as_str().unwrap_or_default();
            ensure!(!name.starts_with("remote") || size == others, "{size} networks in {name}");
            networks += size;
        }
        let cpu = daemon.cpu()?.as_millis();
        Ok(format!("{peers} peers, {routes} routes, {networks} guarded networks, {cpu} ms of CPU"))
    }

    /// How much memory `nft` takes, at most, to write the guard as it stands: the daemon has it do so at its start, and
    /// in a container its memory counts as the daemon's.
    pub fn nft_peak(&self) -> Result<u64> {
        let file = self.home.path().join("guard");
        fs::write(&file, self.node.sh(&format!("nft list table inet {}", names::GUARD_TABLE))?)?;
        let elsewhere = Netns::new("elsewhere")?;
        let mut command = elsewhere.command("time");
        let output =
            command.args(["--format=%M", "nft", "-f"]).arg(&file).output().context("running time")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nft cannot write the guard: {said}");
        Ok(said.trim().parse::<u64>().with_context(|| format!("time says {said:?}"))? << 10)
    }

    /// The tunnel's state, as the configuration protocol tells it. Read as text, for speed: it is asked often, and
    /// shares the machine with who is measured.
    pub fn tunnel(&self) -> Result<String> {
        self.node.run(|| {
            let socket = warren_tunnel::uapi::socket_path(&names::interface(0, 0));
            let mut stream = UnixStream::connect(&socket)?;
            stream.write_all(b"get=1\n\n")?;
            let mut text = Vec::new();
            let mut chunk = vec![0; 256 << 10];
            while !text.ends_with(b"\n\n") {
                let read = stream.read(&mut chunk)?;
                ensure!(read > 0, "the tunnel's answer ends early");
                text.extend_from_slice(&chunk[..read]);
            }
            Ok(String::from_utf8(text)?)
        })?
    }

    /// How much the daemon has logged.
    pub fn said(&self) -> Result<u64> {
        Ok(fs::metadata(self.home.path().join("log"))?.len())
    }

    /// Waits until the daemon has logged more than that, as it does before it acts. Asking the tunnel for the state of
    /// thousands of peers over and over would slow down what is measured.
    pub fn wait_for_word(&self, said: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.said()? == said {
            ensure!(Instant::now() < deadline, "the daemon says nothing");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Has a node announce a new key; returns it, as the tunnel writes it.
    pub fn announce(&self, number: u16) -> Result<String> {
        let (spec, key) = announced(number)?;
        let new: Vec<_> = spec.annotations.iter().map(|(name, value)| (&**name, Some(&**value))).collect();
        self.api.update_annotations(&spec.name, &new)?;
        Ok(key)
    }

    /// Takes a node away; returns its key.
    pub fn leave(&self, number: u16) -> Result<String> {
        let name = spec(number).name;
        let key = self.api.annotation(&name, annotations::PUBLIC_KEY).context("it has no key")?;
        self.api.delete_node(&name)?;
        Ok(hex(&key.parse()?))
    }

    /// Has a node register and announce itself; returns its key.
    pub fn join(&self, number: u16) -> Result<String> {
        let (spec, key) = announced(number)?;
        self.api.add_node(&spec)?;
        Ok(key)
    }

    /// Whether the daemon was to use WireGuard in the kernel, and could not.
    pub fn fell_back(&self) -> Result<bool> {
        let answer = self.probe("/status")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        let status: warren_api::status::Status = serde_json::from_str(body)?;
        Ok(status.fallback.is_some())
    }

    /// What the daemon answers on its loopback.
    pub fn probe(&self, path: &str) -> Result<String> {
        self.node.run(|| {
            let mut stream = TcpStream::connect(names::HTTP)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: warrend\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }
}

/// A Node with addresses of both families.
fn spec(number: u16) -> NodeSpec {
    let mut spec = NodeSpec::numbered(number);
    spec.addresses.push(format!("fd77::{number:x}"));
    spec
}

/// A Node that announces a key, and the key as the tunnel writes it.
fn announced(number: u16) -> Result<(NodeSpec, String)> {
    let mut spec = spec(number);
    let key = random_key()?;
    let pod_cidrs = spec.pod_cidrs.iter().map(|cidr| cidr.parse()).collect::<Result<_, _>>()?;
    let endpoints = spec.addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    spec.annotations.extend(announced::annotations(&spec.name, &spec.uid, pod_cidrs, endpoints, key));
    Ok((spec, hex(&key)))
}

fn hex(key: &PublicKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}
