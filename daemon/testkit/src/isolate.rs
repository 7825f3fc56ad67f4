//! The whole program in namespaces of its own, so that nothing it does outlives it.
//!
//! ```text
//! shell ── outer            waits, forwards signals, returns the exit status; dies: init dies
//!           └─ init         pid 1 of the new pid namespace: reaps orphans; dies: all die
//!               └─ program  `enter` returns here, the rest of `main` runs here
//!                   └─ warrend, ping, iperf3 …
//! ```
//!
//! The kernel kills every process of a pid namespace when its pid 1 ends, and drops network and mount
//! namespaces, with their interfaces, rules and tmpfs, when no process is left in them. So there is no
//! clean-up to forget: SIGKILL of any of the three leaves no process, no interface and no file.
//!
//! `init` is a process of its own and not the program, because pid 1 has to reap orphans (a daemonised
//! `warren-tunnel`), and `waitpid(-1)` in the program would steal exit statuses from
//! [`std::process::Child`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getegid, geteuid, pipe, setsid};

use crate::sys;

/// Set by [`enter`].
static ENTERED: OnceLock<Entered> = OnceLock::new();

/// What there is to know later of the side that was left.
struct Entered {
    /// The caller's /proc, kept open so that [`host_pid`] can look from inside at what the caller sees.
    host_proc: OwnedFd,
    /// Whether a user namespace is among the new ones.
    user_namespace: bool,
}

/// Signals that the outer process and init pass on to the program.
const FORWARDED: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Moves the program into new mount, pid, network and host-name namespaces, and into a user namespace when
/// the caller is not root; returns inside, as root of these namespaces. To be called first in `main`,
/// before any thread exists. The processes outside return the program's exit status (128 + n for signal n).
///
/// Inside, `/run` is an empty tmpfs and `TMPDIR` points into it, `/proc` shows the new processes only, and
/// programs of `/usr/sbin` are on `PATH`. The error is one line that says what is missing.
pub fn enter() -> Result<()> {
    sys::ensure_single_threaded()?;
    let host_proc = File::open("/proc").context("opening /proc")?.into();
    let user_namespace = new_namespaces()?;

    let forwarded = SigSet::from_iter(FORWARDED.into_iter().chain([Signal::SIGCHLD]));
    let mut caller_mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&forwarded), Some(&mut caller_mask))?;
    // What is buffered now would be printed by each of the processes.
    io::stdout().flush()?;

    let (outer_lives, outer_end) = pipe()?;
    if let ForkResult::Parent { child: init } = sys::fork_single_threaded()? {
        drop(outer_lives);
        std::process::exit(attend(&forwarded, init));
    }
    drop(outer_end);
    die_with_outer(&outer_lives)?;
    drop(outer_lives);
    // Out of the terminal's foreground group: Ctrl-C reaches the outer process alone, which passes it on to
    // the program alone, and the program decides what becomes of its children.
    setsid()?;
    furnish()?;
    if let ForkResult::Parent { child: program } = sys::fork_single_threaded()? {
        std::process::exit(attend(&forwarded, program));
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&caller_mask), None)?;
    ENTERED
        .set(Entered { host_proc, user_namespace })
        .map_err(|_| anyhow!("isolate::enter() was called twice"))
}

/// Fails unless [`enter`] has returned: what would be left behind otherwise is left on somebody's machine.
pub(crate) fn ensure_entered() -> Result<()> {
    ENTERED.get().map(drop).context("call isolate::enter() first in main")
}

/// The command by which the caller, from outside, enters the namespaces of the process `pid` of this side.
pub fn nsenter(pid: u32) -> Result<String> {
    let entered = ENTERED.get().context("isolate::enter() was not called")?;
    // Not --all: without root outside, the cgroup namespace refuses. In a user namespace the caller is root
    // already, and may not change its groups.
    let user = if entered.user_namespace { " --user --preserve-credentials" } else { "" };
    Ok(format!("nsenter --target {}{user} --mount --uts --net --pid", host_pid(pid)?))
}

/// The pid by which the caller's side knows the process `pid` of this side; for messages such as
/// `nsenter -t PID`.
pub fn host_pid(pid: u32) -> Result<u32> {
    let entered = ENTERED.get().context("isolate::enter() was not called")?;
    let host_proc = format!("/proc/self/fd/{}", entered.host_proc.as_raw_fd());
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    for entry in fs::read_dir(&host_proc)?.flatten() {
        let Some(host_pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes that end meanwhile, or are not ours to look at, are not the one.
        if fs::read_link(entry.path().join("ns/pid")).is_ok_and(|other| other == namespace)
            && fs::read_to_string(entry.path().join("status"))
                .is_ok_and(|status| innermost_pid(&status) == Some(pid))
        {
            return Ok(host_pid);
        }
    }
    bail!("the caller's /proc shows no process that is {pid} here")
}

/// The last number of `NSpid:` in a `/proc/PID/status`: the pid in the process's own namespace.
fn innermost_pid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

/// Unshares the namespaces, with a user namespace around them when that is the only way; returns whether it
/// was.
fn new_namespaces() -> Result<bool> {
    let wanted = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS;
    match unshare(wanted) {
        Ok(()) => return Ok(false),
        Err(Errno::EPERM) => {}
        Err(errno) => bail!("cannot create namespaces: {}{}", errno.desc(), why_refused()),
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | wanted)
        .map_err(|errno| anyhow!("cannot create a user namespace: {}{}", errno.desc(), why_refused()))?;
    // Without CAP_SETGID outside, a group may be mapped only once setgroups is given up: user_namespaces(7).
    for (file, text) in [
        ("setgroups", "deny".into()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        let file = format!("/proc/self/{file}");
        fs::write(&file, text).with_context(|| format!("writing {file}{}", why_refused()))?;
    }
    Ok(true)
}

/// The switches by which systems forbid namespaces, if one of them is thrown.
fn why_refused() -> String {
    let switches = [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        ("user/max_net_namespaces", "0", "user.max_net_namespaces=10000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    for (file, forbidding, remedy) in switches {
        if fs::read_to_string(Path::new("/proc/sys").join(file)).is_ok_and(|value| value.trim() == forbidding)
        {
            return format!(" (as root: sysctl -w {remedy}; or run this as root)");
        }
    }
    " (run this as root, or where user namespaces are allowed; in a container: with --privileged)".into()
}

/// Lets the kernel kill this process when the outer one ends in whatever way.
fn die_with_outer(outer_lives: &OwnedFd) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before that call. The parent's pid would not tell: seen from here it is 0, always.
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(outer_lives), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO)? > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Mounts and names, before the program starts: private mounts, a /proc of the new pid namespace, an empty
/// /run.
fn furnish() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .with_context(|| format!("making mounts private{}", why_refused()))?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        none,
    )
    .with_context(|| format!("mounting /proc{}", why_refused()))?;
    mount_tmpfs("/run")?;
    // On Debian a symbolic link to /run; where it is a directory, programs expect the same in both.
    if !fs::symlink_metadata("/var/run").is_ok_and(|run| run.is_symlink()) && Path::new("/var/run").is_dir() {
        mount(Some("/run"), "/var/run", none, MsFlags::MS_BIND, none).context("binding /run to /var/run")?;
    }
    for directory in ["/run/netns", "/run/tmp", "/run/wireguard"] {
        fs::create_dir(directory).with_context(|| format!("creating {directory}"))?;
    }
    nix::unistd::sethostname("warren-lab").context("setting the host name")?;
    sys::set_env("TMPDIR", "/run/tmp")?;
    let path = std::env::var("PATH").unwrap_or_default();
    sys::set_env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))?;
    Ok(())
}

/// Mounts an empty tmpfs.
pub(crate) fn mount_tmpfs(at: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
        .with_context(|| format!("mounting a tmpfs on {at}"))
}

/// Waits for `child`, reaping all other children and passing signals on to it; returns the exit status to
/// end with.
fn attend(signals: &SigSet, child: Pid) -> i32 {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {}
            Ok(signal) => {
                // The child may have ended just now; then SIGCHLD is next.
                let _ = kill(child, signal);
                continue;
            }
            Err(_) => return 1,
        }
        // One SIGCHLD may stand for several ends.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) if pid == child => return status,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}
