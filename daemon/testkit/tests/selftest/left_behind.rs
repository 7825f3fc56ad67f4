//! Ends a lab in mid-traffic in every way there is, and looks for what is left of it.
//!
//! The victim is this program again, started with [`VICTIM`] set. It isolates itself a second time, within
//! the namespaces of the scenarios, whose `/proc` shows all of its processes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_testkit::lab::{Lab, Plan};
use warren_testkit::traffic::ping::Flood;
use warren_testkit::{isolate, wait};

const VICTIM: &str = "WARREN_SELFTEST_VICTIM";

/// What the victim of this environment is to do, if this process is one.
pub fn victim() -> Option<String> {
    std::env::var(VICTIM).ok()
}

/// The life of a victim.
pub fn live(how: &str) -> ExitCode {
    let lived = isolate::enter().and_then(|()| match how {
        "exits" => std::process::exit(7),
        "panics" => panic!("as asked"),
        "fails" => bail!("as asked"),
        _ => run_a_lab(),
    });
    lived.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

fn run_a_lab() -> Result<()> {
    let lab = Lab::new(Plan { nodes: 2, ..Plan::default() })?;
    let _flood =
        Flood::start(&lab.node(1).pods[0].netns, lab.node(2).pods[0].ipv4(), Duration::from_millis(5))?;
    // A daemon that lost its parent, as warren-tunnel is one, deaf to all but SIGKILL.
    let daemon = "trap '' INT TERM HUP; sleep 1000";
    lab.node(1).netns.command("setsid").args(["--fork", "sh", "-c", daemon]).status()?;
    println!("running");
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// SIGKILL of the outer process, of init and of the program itself leave nothing.
pub fn sigkill() -> Result<()> {
    for depth in 0..3 {
        let before = Traces::find()?;
        let mut victim = start("runs")?;
        let lineage = lineage(victim.id())?;
        ensure!(Traces::find()? != before, "the victim leaves no trace while it runs: this test is blind");
        kill(Pid::from_raw(lineage[depth]), Signal::SIGKILL)?;
        victim.wait()?;
        gone(&before).with_context(|| format!("after SIGKILL of process {depth} of outer, init, program"))?;
    }
    Ok(())
}

/// SIGINT and SIGTERM reach the program, and the caller learns of its end.
pub fn signals() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let before = Traces::find()?;
        let mut victim = start("runs")?;
        kill(Pid::from_raw(victim.id() as i32), signal)?;
        let status = victim.wait()?;
        ensure!(status.code() == Some(128 + signal as i32), "after {signal}: {status}");
        gone(&before)?;
    }
    Ok(())
}

/// The caller gets the program's own exit status.
pub fn exit_status() -> Result<()> {
    for (how, expected) in [("exits", 7), ("fails", 1), ("panics", 101)] {
        let before = Traces::find()?;
        let status: ExitStatus = spawn(how)?.wait()?;
        ensure!(
            status.code() == Some(expected),
            "a program that {how}: {status}, signal {:?}",
            status.signal()
        );
        gone(&before)?;
    }
    Ok(())
}

fn spawn(how: &str) -> Result<Child> {
    // A shell's background jobs ignore SIGINT, and so would all that they start.
    Command::new("env")
        .arg("--default-signal=INT")
        .arg(std::env::current_exe()?)
        .env(VICTIM, how)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the victim")
}

/// Starts a victim and waits until its traffic runs.
fn start(how: &str) -> Result<Child> {
    let mut victim = spawn(how)?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("stdout was piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "running", "the victim did not come up: {line:?}");
    Ok(victim)
}

/// The outer process, init and the program, as pids here.
fn lineage(outer: u32) -> Result<[i32; 3]> {
    let child = |of: i32| {
        let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children"))?;
        let first = children.split_whitespace().next().with_context(|| format!("{of} has no child"))?;
        anyhow::Ok(first.parse()?)
    };
    let init = child(outer as i32)?;
    Ok([outer as i32, init, child(init)?])
}

fn gone(before: &Traces) -> Result<()> {
    wait::until("the end of all that the victim started", Duration::from_secs(5), || {
        let now = Traces::find()?;
        ensure!(now == *before, "before: {before:?}\nnow: {now:?}");
        Ok(())
    })
}

/// What a lab might leave.
#[derive(Debug, PartialEq)]
struct Traces {
    processes: BTreeSet<String>,
    network_namespaces: BTreeSet<String>,
    interfaces: String,
    mounts: String,
    files: BTreeSet<String>,
}

impl Traces {
    fn find() -> Result<Self> {
        let mut processes = BTreeSet::new();
        let mut network_namespaces = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.bytes().all(|byte| byte.is_ascii_digit()) {
                // A process that ended meanwhile has neither.
                let link = |kind: &str| fs::read_link(entry.path().join(kind));
                if let (Ok(namespace), Ok(program)) = (link("ns/net"), link("exe")) {
                    processes.insert(format!("{name} {}", program.display()));
                    network_namespaces.insert(namespace.display().to_string());
                }
            }
        }
        let mut files = BTreeSet::new();
        for directory in ["/run", "/run/netns", "/run/tmp", "/run/wireguard"] {
            files.extend(fs::read_dir(directory)?.flatten().map(|entry| entry.path().display().to_string()));
        }
        Ok(Self {
            processes,
            network_namespaces,
            interfaces: fs::read_to_string("/proc/self/net/dev")?
                .lines()
                .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned() + " "))
                .collect(),
            mounts: fs::read_to_string("/proc/self/mountinfo")?,
            files,
        })
    }
}
