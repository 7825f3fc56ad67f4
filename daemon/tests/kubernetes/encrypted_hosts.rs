//! The API server on a node whose traffic with the other nodes is encrypted (`--encrypt-host`).

use std::fs;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use warren_testkit::apiserver::real::Patch;
use warren_testkit::lab::{Node, WarrendOptions, write_atomically};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

use crate::cluster::{NEWS, RETURN, three_nodes};
use crate::common::{Mesh, await_talk, in_lab, none_talk};

/// The label of nodes that run the API server.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The tunnels of node 1 are all wrong and its daemon dead, and node 2 changes its key meanwhile. A new daemon reads that
/// key from the API server on node 3, to which no tunnel leads, and the mesh heals.
pub fn mend_themselves() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        let gate = Gate::open(mesh, 3)?;
        let options = WarrendOptions { extra: vec!["--encrypt-host".into()], ..WarrendOptions::default() };
        mesh.lab.start_all(&options)?;
        mesh.await_up()?;
        let [one, two, three] = [1, 2, 3].map(|number| mesh.node(number));
        await_hosts(one, &[two, three])?;
        let before = two.status()?.public_key;

        one.kill_warrend()?;
        let wrong = one.state_dir().with_extension("wrong-key");
        fs::write(&wrong, one.netns.sh("wg genkey")?)?;
        one.netns.sh(&format!("wg set warren-a0 private-key {}", wrong.display()))?;
        for other in [two, three] {
            let key = other.status()?.public_key;
            one.netns.sh(&format!("wg set warren-a0 peer {key} remove"))?;
        }
        two.stop_warrend()?;
        fs::remove_file(two.state_dir().join("key-0"))?;
        two.start_warrend(&options)?;
        wait::until("another key of node 2", NEWS, || {
            let peers = three.status()?.peers;
            let found = peers.iter().find(|peer| peer.node == two.name).context("node 3 does not know it")?;
            ensure!(found.public_key != before, "it is the same");
            Ok(())
        })?;
        mesh.silent()?;
        for other in [two, three] {
            no_ping(one, other.ips[0])?;
        }
        none_talk(&[(mesh.pod(1, 1), mesh.pod(2, 1)), (mesh.pod(3, 1), mesh.pod(1, 1))])?;
        mesh.silent().context("with wrong tunnels")?;

        let (served, start) = (gate.served(), Instant::now());
        one.start_warrend(&options)?;
        wait::until("the key of node 2 on node 1", RETURN, || {
            let peers = one.status()?.peers;
            let found = peers.iter().find(|peer| peer.node == two.name).context("node 1 does not know it")?;
            ensure!(found.public_key == two.status()?.public_key, "it is the old one");
            Ok(())
        })?;
        let known = start.elapsed();
        ensure!(gate.served() > served, "not from the API server on node 3");
        mesh.await_up()?;
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1)] {
            await_talk(mesh.pod(from, 1), mesh.pod(to, 1), Duration::from_secs(10))?;
        }
        await_hosts(one, &[two, three])?;
        for ip in two.ips.iter().chain(&three.ips) {
            Ping::of(3).run(&one.netns, *ip)?.complete().context("from node to node")?;
        }
        mesh.sealed()?;
        println!("the new key known after {known:.1?}, the mesh whole after {:.1?}", start.elapsed());
        Ok(())
    })
}

/// Waits until a node leads its own programs' packets to others into tunnels.
fn await_hosts(node: &Node, others: &[&Node]) -> Result<()> {
    wait::until("--encrypt-host", Duration::from_secs(10), || {
        for ip in others.iter().flat_map(|other| &other.ips) {
            let route = node.netns.sh(&format!("ip route get {ip}"))?;
            ensure!(route.contains("dev warren-"), "{route}");
        }
        Ok(())
    })
}

/// No answer to pings, which may fail to be sent at all.
fn no_ping(node: &Node, to: IpAddr) -> Result<()> {
    let interval = wait::patient(Duration::from_millis(4));
    let ping = Ping { interval, patience: Duration::from_millis(100), ..Ping::of(3) };
    match ping.run(&node.netns, to) {
        Ok(answers) if answers.received > 0 => bail!("{} reached {to}: {answers}", node.name),
        _ => Ok(()),
    }
}

/// The API server at a node's own address and port, as a node of the control plane has it: a program of the node hands
/// connections on to the machine that the lab's server runs on. The daemons are told that address alone.
struct Gate {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Gate {
    fn open(mesh: &Mesh, number: usize) -> Result<Self> {
        let (api, node) = (mesh.lab.api(), mesh.node(number));
        let labels = json!({"metadata": {"labels": {CONTROL_PLANE: ""}}});
        api.client().patch(&mesh.lab.node_path(number), Patch::Merge, &labels)?.ok()?;
        let (server, here) = (api.address(), SocketAddr::new(node.ips[0], api.address().port()));
        for node in &mesh.lab.nodes {
            let text = fs::read_to_string(node.kubeconfig_path())?;
            // The certificate names the machine.
            let gate = format!("https://{here}\n    tls-server-name: kubernetes.default.svc");
            let told = text.replace(&api.url(), &gate);
            ensure!(told != text, "the API server is not in {text}");
            write_atomically(&node.kubeconfig_path(), told)?;
        }
        let (over, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stop, count) = (over.clone(), served.clone());
        // A thread that is begun inside stays inside.
        let thread = node.netns.run(|| {
            let listener = TcpListener::bind(here)?;
            listener.set_nonblocking(true)?;
            anyhow::Ok(std::thread::spawn(move || serve(&listener, server, &stop, &count)))
        })??;
        Ok(Self { over, served, thread: Some(thread) })
    }

    /// How many connections were handed on.
    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Connections end with the server.
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: &TcpListener, server: SocketAddr, over: &AtomicBool, served: &AtomicUsize) {
    while !over.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        // Whoever is not served tries again.
        if client.set_nonblocking(false).is_ok()
            && let Ok(server) = TcpStream::connect(server)
            && let (Ok(to_server), Ok(to_client)) = (server.try_clone(), client.try_clone())
        {
            served.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || hand_on(client, to_server));
            std::thread::spawn(move || hand_on(server, to_client));
        }
    }
}

/// Hands on what comes, until there is no more.
fn hand_on(mut from: TcpStream, mut to: TcpStream) {
    // Whatever broke, both ends are told by the end of the connection.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}
