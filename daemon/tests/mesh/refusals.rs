//! A tunnel that answers, and refuses what it is told: for want of memory, or because it is somebody else's program.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warren_testkit::lab::{Backend, Node, Rights, WarrendOptions};
use warren_testkit::wait;

use crate::backends::await_problem;
use crate::common::{in_lab, no_talk, talk, two_nodes};

/// The node with this tunnel: it has a process unless all nodes' tunnels are the kernel's.
const REFUSED: usize = 2;

const SOCKET: &str = "/run/wireguard/warren-a0.sock";

/// The node is not ready, says why, and tries again and again; nothing is in the clear. Once a tunnel takes its peers, it
/// joins.
pub fn changes() -> Result<()> {
    Backend::of(REFUSED)?.needs_process()?;
    in_lab(two_nodes(), |mesh| {
        let node = mesh.node(REFUSED);
        node.netns.ip("tuntap add dev warren-a0 mode tun")?;
        let tunnel = Refusing::serve(node)?;
        mesh.node(1).start_warrend(&WarrendOptions::default())?;
        node.start_warrend(&WarrendOptions { rights: Rights::Manifest, ..WarrendOptions::default() })?;
        await_problem(node, "did not answer as it should")?;
        let before = tunnel.refused();
        wait::until("more attempts", Duration::from_secs(5), || {
            ensure!(tunnel.refused() >= before + 3, "{} attempts, and {before} before", tunnel.refused());
            Ok(())
        })?;
        await_problem(node, "did not answer as it should")?;
        no_talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.silent()?;
        tunnel.stop()?;
        node.netns.sh(&format!("rm {SOCKET}"))?;
        node.netns.ip("tuntap del dev warren-a0 mode tun")?;
        node.start_tunnel()?;
        mesh.await_up()?;
        talk(mesh.pod(1, 1), mesh.pod(2, 1))?;
        mesh.sealed().map(drop)
    })
}

/// Tells that it has neither key nor peers, and refuses every change with ENOMEM.
struct Refusing {
    refused: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Refusing {
    fn serve(node: &Node) -> Result<Self> {
        let listener = node.netns.run(|| UnixListener::bind(SOCKET))?.context("listening")?;
        listener.set_nonblocking(true)?;
        let (refused, stop) = <(Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let (counter, stopped) = (refused.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => answer(client, &counter)?,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            Ok(())
        });
        Ok(Self { refused, stop, thread })
    }

    fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the tunnel does not panic")
    }
}

/// One request, whole or broken off.
fn answer(mut client: UnixStream, refused: &AtomicUsize) -> Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while !request.ends_with(b"\n\n") {
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
    let answer = if request.starts_with(b"set=1") {
        refused.fetch_add(1, Ordering::Relaxed);
        "errno=-12\n\n"
    } else {
        "errno=0\n\n"
    };
    // Whoever waits no longer knows it.
    let _ = client.write_all(answer.as_bytes());
    Ok(())
}
