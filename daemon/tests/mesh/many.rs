//! A registry of 200 nodes.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_api::PublicKey;
use warren_testkit::announced::{self, random_key};
use warren_testkit::lab::{Manifest, Node, WarrendOptions};
use warren_testkit::wait;

use crate::common::{Mesh, await_up, in_lab, two_nodes};

const NODES: usize = 200;
/// Figures of issue 2.
const CONVERGED: Duration = Duration::from_secs(3);
const HANDLED: Duration = Duration::from_millis(200);

/// Two nodes are real; the others are in the registry alone, each with a key, an address and pods.
pub fn two_hundred_nodes() -> Result<()> {
    in_lab(two_nodes(), |mesh| {
        for number in 3..=NODES {
            register(mesh, number, random_key()?)?;
        }
        mesh.node(2).start_warrend(&WarrendOptions::default())?;
        let node = mesh.node(1);
        let start = Instant::now();
        node.start_warrend(&WarrendOptions::default())?;
        let converged = wait::until("convergence", Duration::from_secs(30), || {
            node.ready()?;
            let peers = node.status()?.peers.len();
            ensure!(peers == NODES - 1, "{peers} peers");
            Ok(start.elapsed())
        })?;
        ensure!(converged < wait::patient(CONVERGED), "{NODES} nodes took {converged:?}");
        await_up(&[mesh.node(1), mesh.node(2)])?;
        println!("{NODES} nodes: converged {} ms after the start", converged.as_millis());

        let traffic = mesh.traffic()?;
        // Several nodes, because one measurement on a busy machine says little.
        let subjects = [20, 60, 100, 140, 180];
        let registry = mesh.lab.registry();
        measure("one key changed", subjects, |number| {
            change(mesh, number, || register(mesh, number, random_key()?))
        })?;
        measure("one node gone", subjects, |number| {
            change(mesh, number, || Ok(fs::remove_file(manifest(mesh, number).path(&registry))?))
        })?;
        measure("one node came", subjects, |number| {
            change(mesh, number, || register(mesh, number, random_key()?))
        })?;
        traffic.stop()?.none().context("while the registry changed")?;
        mesh.sealed()?;
        Ok(())
    })
}

/// Checks the median of the times that a change took.
fn measure<const N: usize>(
    what: &str,
    subjects: [usize; N],
    change: impl Fn(usize) -> Result<Duration>,
) -> Result<()> {
    let mut times = subjects.map(|_| Duration::ZERO);
    for (time, number) in times.iter_mut().zip(subjects) {
        *time = change(number).with_context(|| format!("{what}: node-{number}"))?;
    }
    times.sort_unstable();
    let shown = times.map(|time| time.as_millis().to_string()).join(", ");
    println!("{what}: in the tunnel after {shown} ms, no other peer touched");
    ensure!(
        // Patient twice: an emulated processor is that much slower where it does nothing but compute.
        times[N / 2] < wait::patient(wait::patient(HANDLED)),
        "{what}: the median of {shown} ms is not below {HANDLED:?}"
    );
    Ok(())
}

/// Changes the Node `subject` in the registry, waits until node 1's tunnel has changed, and checks that only
/// its peer has.
fn change(mesh: &Mesh, subject: usize, change: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let node = mesh.node(1);
    let before = peers(node)?;
    let pods = mesh.lab.plan.pod_cidrs(subject)[0].to_string();
    let start = Instant::now();
    change()?;
    // The tunnel is asked and not warrend, which would otherwise be busy with answers.
    let (after, time) = wait::until("a change of the tunnel", Duration::from_secs(5), || {
        let now = peers(node)?;
        ensure!(now.keys().ne(before.keys()), "it is as before");
        Ok((now, start.elapsed()))
    })?;
    for (these, those) in [(&before, &after), (&after, &before)] {
        for (key, peer) in
            these.iter().filter(|(key, peer)| !those.get(*key).is_some_and(|other| other.is(peer)))
        {
            ensure!(peer.configured.contains(&pods), "the peer {key} was touched: {peer:?}");
        }
    }
    Ok(time)
}

/// What the tunnel holds of a peer; not its byte counters, which traffic changes.
#[derive(Debug, PartialEq)]
struct Peer {
    /// PSK, endpoint, allowed IPs, and the interval of keepalives.
    configured: String,
    /// The time of the last handshake, in seconds since the Unix epoch; 0 for never.
    handshake: u64,
}

impl Peer {
    /// Whether they are the same one, with the same session, or the next one when its time had come
    /// (REKEY_AFTER_TIME, 120 s).
    fn is(&self, other: &Self) -> bool {
        let between = self.handshake.abs_diff(other.handshake);
        let rekeyed = self.handshake.min(other.handshake) > 0 && between >= 120;
        self.configured == other.configured && (between == 0 || rekeyed)
    }
}

fn peers(node: &Node) -> Result<BTreeMap<String, Peer>> {
    let dump = node.netns.sh("wg show warren-a0 dump")?;
    dump.lines()
        .skip(1)
        .map(|line| {
            let [key, psk, endpoint, allowed_ips, handshake, _, _, keepalive] = line
                .split('\t')
                .collect::<Vec<_>>()
                .try_into()
                .map_err(|_| anyhow::anyhow!("wg says {line:?}"))?;
            let configured = [psk, endpoint, allowed_ips, keepalive].join(" ");
            Ok((key.to_owned(), Peer { configured, handshake: handshake.parse()? }))
        })
        .collect()
}

fn manifest(mesh: &Mesh, number: usize) -> Manifest {
    let plan = &mesh.lab.plan;
    Manifest::new(&format!("node-{number}"), plan.pod_cidrs(number), plan.node_ips(number))
}

/// Puts a Node into the registry that has announced `key`.
fn register(mesh: &Mesh, number: usize, key: PublicKey) -> Result<()> {
    let mut manifest = manifest(mesh, number);
    let Manifest { name, uid, pod_cidrs, internal_ips, .. } = &manifest;
    manifest.annotations = announced::annotations(name, uid, pod_cidrs.clone(), internal_ips.clone(), key);
    manifest.write(&mesh.lab.registry())
}
