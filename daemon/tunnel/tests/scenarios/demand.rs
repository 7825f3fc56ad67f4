//! Tunnels that are served while somebody wants them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;
use warren_testkit::netns::Netns;
use warren_testkit::{process, wait};
use warren_tunnel::uapi::{client, socket_path, wanted_path};

use super::lifecycle::cpu_ticks;
use super::site::{SOON, WARREN};

/// What the interfaces are called.
const PREFIX: &str = "warren-";

/// A machine on which `warren-tunnel --on-demand` runs.
struct Demand {
    netns: Netns,
    child: Child,
    log: NamedTempFile,
}

impl Demand {
    /// Nobody stops the program from making files that everybody may open.
    fn start() -> Result<Self> {
        let netns = Netns::new("demand")?;
        let log = NamedTempFile::new()?;
        let mut command = netns.command("sh");
        command.args(["-c", "umask 0; exec \"$@\"", "sh", WARREN, "--on-demand", PREFIX]);
        let child = command.stdin(Stdio::null()).stderr(log.reopen()?).spawn()?;
        let demand = Self { netns, child, log };
        wait::until("its first word", SOON, || {
            ensure!(demand.said()?.contains("serving"), "nothing yet");
            Ok(())
        })?;
        Ok(demand)
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log.path())?)
    }

    fn want(&self, interfaces: &[String]) -> Result<()> {
        self.netns
            .run(|| interfaces.iter().try_for_each(|name| File::create(wanted_path(name)).map(drop)))??;
        Ok(())
    }

    fn await_served(&self, interfaces: &[String]) -> Result<()> {
        wait::until("the tunnels", SOON, || {
            self.netns.run(|| {
                interfaces.iter().try_for_each(|name| client::get(&socket_path(name), SOON).map(drop))
            })??;
            Ok(())
        })
    }

    fn links(&self) -> Result<BTreeSet<String>> {
        let links = process::output(self.netns.command("ip").args(["-brief", "link"]))?;
        let names = links.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("sending a signal")
    }

    fn wait(&mut self) -> Result<()> {
        let status = wait::until("its end", SOON, || self.child.try_wait()?.context("it runs"))?;
        ensure!(status.success(), "{status}: {}", self.said()?);
        Ok(())
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{PREFIX}a{number}")).collect()
}

/// A socket hands out the private key to whoever may open it. With many tunnels made at once, none is anybody's but
/// root's, whatever the umask; and nothing is left of them in the end.
pub fn sockets() -> Result<()> {
    let wanted = names(16);
    for _ in 0..5 {
        let mut demand = Demand::start()?;
        demand.want(&wanted)?;
        demand.await_served(&wanted)?;
        for name in &wanted {
            let metadata = demand.netns.run(|| fs::metadata(socket_path(name)))??;
            let mode = metadata.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "the socket of {name} has mode {mode:o}");
        }
        ensure!(demand.links()?.len() == wanted.len(), "{:?}", demand.links()?);
        demand.signal(Signal::SIGTERM)?;
        demand.wait()?;
        ensure!(demand.links()?.is_empty(), "left behind: {:?}", demand.links()?);
        for name in &wanted {
            ensure!(
                !demand.netns.run(|| socket_path(name).exists())?,
                "the socket of {name} was left behind"
            );
        }
    }
    Ok(())
}

/// Two names are somebody else's: those are asked for again and again without haste and without many words, the third is
/// served; and once they are free, they are, too.
pub fn taken_names() -> Result<()> {
    let demand = Demand::start()?;
    let wanted = names(3);
    for name in &wanted[..2] {
        demand.netns.ip(&format!("link add {name} type bridge"))?;
    }
    demand.want(&wanted)?;
    demand.await_served(&wanted[2..])?;
    // What is measured is that little happens; there is nothing to wait for. Others' files do not hurry it.
    let (start, before) = (Instant::now(), cpu_ticks(demand.child.id())?);
    while start.elapsed() < Duration::from_secs(2) {
        demand.netns.sh("touch /run/wireguard/other.wanted")?;
        demand.netns.sh("rm /run/wireguard/other.wanted")?;
    }
    let (ticks, said) = (cpu_ticks(demand.child.id())? - before, demand.said()?);
    let lines = said.lines().filter(|line| line.contains("another interface")).count();
    println!("two names taken for 2 s: {lines} lines, {ticks} ticks of 10 ms");
    ensure!((2..=10).contains(&lines), "{lines} lines: {said}");
    ensure!(ticks <= 10, "{ticks} ticks");
    for name in &wanted[..2] {
        demand.netns.ip(&format!("link delete {name}"))?;
    }
    demand.await_served(&wanted)
}

/// Programs that hang are all found out within the time that a kubelet gives to one probe.
pub fn probe() -> Result<()> {
    /// `timeoutSeconds` of the DaemonSet's probe, less what a busy machine may take to start a program.
    const LIMIT: Duration = Duration::from_secs(4);
    let netns = Netns::new("probe")?;
    let probe = || {
        let start = Instant::now();
        let result = process::output(netns.command(WARREN).args(["--on-demand", "--probe", PREFIX]));
        (result, start.elapsed())
    };
    probe().0.context("while nobody wants anything")?;
    let wanted = names(4);
    let silent = netns.run(|| {
        wanted.iter().try_for_each(|name| File::create(wanted_path(name)).map(drop))?;
        wanted.iter().map(|name| UnixListener::bind(socket_path(name))).collect::<Result<Vec<_>, _>>()
    })??;
    let (result, took) = probe();
    let error = format!("{:#}", result.err().context("programs that hang are taken for well")?);
    println!("4 tunnels that hang are told after {took:?}");
    ensure!(wanted.iter().all(|name| error.contains(name)), "not all are named: {error}");
    ensure!(took < LIMIT, "it took {took:?}");
    drop(silent);
    Ok(())
}
