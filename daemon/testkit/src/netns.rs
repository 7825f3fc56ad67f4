//! One network namespace with a mount namespace of its own: a node, a pod, the underlay, an attacker.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{isolate, process, sys};

/// A network namespace and the mount namespace that goes with it, where `/run/wireguard` is its own (two
/// nodes may both have a `warren-a0.sock`) and `/sys/class/net` shows its own interfaces.
///
/// File descriptors hold it, no process does; it is also mounted on `/run/netns/NAME`, so `ip -n NAME` and
/// `ip netns exec NAME` work. Dropping it kills what still runs in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    net: Arc<OwnedFd>,
    mnt: Arc<OwnedFd>,
}

impl Netns {
    /// Creates a namespace, with `lo` up.
    pub fn new(name: &str) -> Result<Self> {
        isolate::ensure_entered()?;
        // On a thread of its own, which ends at once: this one stays where it is.
        let (net, mnt) = in_thread(create).with_context(|| format!("creating network namespace {name}"))?;
        let netns = Self { name: name.to_owned(), net: Arc::new(net), mnt: Arc::new(mnt) };
        let mounted = netns.mounted_on();
        fs::File::create(&mounted).with_context(|| format!("creating {}", mounted.display()))?;
        let source = format!("/proc/self/fd/{}", netns.net.as_raw_fd());
        mount(Some(source.as_str()), &mounted, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("mounting a network namespace on {}", mounted.display()))?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name, as `ip -n` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside. Its working directory is `/`.
    ///
    /// It is not bound to the life of the thread that spawns it (PR_SET_PDEATHSIG is about threads, not
    /// processes, and would kill daemons started from helper threads): it ends with this value, and with
    /// the program, whose pid namespace takes everything along.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::start_in(&mut command, self.net.clone(), self.mnt.clone());
        command
    }

    /// Runs a command inside to its end and returns what it printed. `words` is split at blanks.
    pub fn sh(&self, words: &str) -> Result<String> {
        let mut words = words.split_whitespace();
        let program = words.next().context("an empty command")?;
        process::output(self.command(program).args(words)).with_context(|| format!("in {}", self.name))
    }

    /// Runs `closure` on a thread inside and returns its result. Sockets opened there stay inside, whoever
    /// uses them later.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| {
            // Threads share root and working directory; setns of a mount namespace wants its own.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&*self.net, CloneFlags::CLONE_NEWNET)?;
            setns(&*self.mnt, CloneFlags::CLONE_NEWNS)?;
            Ok(closure())
        })
        .with_context(|| format!("entering network namespace {}", self.name))
    }

    /// Runs lines of `ip` commands (without the word `ip`) as one batch; the first that fails ends it.
    pub fn ip(&self, batch: &str) -> Result<()> {
        process::output_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch)
            .map(drop)
            .with_context(|| format!("configuring {} with ip", self.name))
    }

    /// Loads an nftables script.
    pub fn nft(&self, script: &str) -> Result<()> {
        process::output_with_input(self.command("nft").args(["-f", "-"]), script)
            .map(drop)
            .with_context(|| format!("configuring {} with nft", self.name))
    }

    /// Writes sysctls, named as `sysctl(8)` does (`net.ipv4.ip_forward`).
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let file = Path::new("/proc/sys").join(name.replace('.', "/"));
                fs::write(&file, value).with_context(|| format!("setting {name} to {value}"))?;
            }
            anyhow::Ok(())
        })?
        .with_context(|| format!("in {}", self.name))
    }

    /// The Ethernet address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let find = || {
            let mut addresses = nix::ifaddrs::getifaddrs()?.filter(|entry| entry.interface_name == interface);
            anyhow::Ok(addresses.find_map(|entry| entry.address?.as_link_addr()?.addr()))
        };
        self.run(find)??.with_context(|| format!("{} has no Ethernet interface {interface}", self.name))
    }

    /// The pids of all processes inside.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let this = fs::read_link(self.descriptor())?;
        let own = std::process::id();
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if pid != own && fs::read_link(entry.path().join("ns/net")).is_ok_and(|other| other == this) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    /// The pids of the processes inside whose command name (`/proc/PID/comm`, 15 bytes) is `name`.
    pub fn pids_of(&self, name: &str) -> Result<Vec<u32>> {
        let is_it = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        Ok(self.pids()?.into_iter().filter(is_it).collect())
    }

    /// The link of our own descriptor: `readlink` of it gives `net:[inode]`.
    fn descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.net.as_raw_fd()))
    }

    fn mounted_on(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Netns {
    /// Best effort: whatever fails here ends with the program's pid namespace.
    fn drop(&mut self) {
        for pid in self.pids().unwrap_or_default() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        let _ = umount2(&self.mounted_on(), MntFlags::MNT_DETACH);
        let _ = fs::remove_file(self.mounted_on());
    }
}

/// What the new thread does: unshare, furnish, and open what it made.
fn create() -> Result<(OwnedFd, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    isolate::mount_tmpfs("/run/wireguard")?;
    // For programs that look into /sys/class/net. Where a container forbids the mount, they see the
    // outer interfaces; nothing of ours reads it.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    let open = |kind| {
        fs::File::open(format!("/proc/thread-self/ns/{kind}"))
            .map(OwnedFd::from)
            .context("opening a namespace")
    };
    Ok((open("net")?, open("mnt")?))
}

/// Runs `closure` on a new thread, since a thread that has changed its namespaces is not to be used further.
fn in_thread<T: Send>(closure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(closure).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
