//! The daemon under test: how it is started, stopped, killed and found.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_api::status::Enforcement;

use super::{Node, Registry};
use crate::apiserver::real;
use crate::{process, wait};

/// How to start warrend. The default is what the demo does: strict, told the lab's ranges.
#[derive(Debug, Clone)]
pub struct WarrendOptions {
    /// `--enforcement`.
    pub enforcement: Enforcement,
    /// `--resync`, as warrend takes it (`5s`); its own default when absent; `5s` where the lab is slow.
    pub resync: Option<String>,
    /// `--cluster-cidrs`, `--node-cidrs` and, of a cluster, `--service-cidrs` with the lab's ranges.
    pub tell_cidrs: bool,
    /// `--registry`; the lab's own when absent.
    pub registry: Option<String>,
    /// `--backend`; that of the node when absent.
    pub backend: Option<&'static str>,
    /// What warrend may do on its node, and who starts the tunnel.
    pub rights: Rights,
    /// More arguments.
    pub extra: Vec<String>,
}

impl Default for WarrendOptions {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Strict,
            resync: None,
            tell_cidrs: true,
            registry: None,
            backend: None,
            rights: Rights::Root,
            extra: Vec::new(),
        }
    }
}

/// How often warrend looks in a lab without being told of a change. Its own default follows from what a look takes: on
/// a slow machine that would be a minute, as in clusters of thousands of nodes.
const RESYNC: &str = "5s";

/// Who a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// root, who starts warren-tunnel itself when there is none.
    Root,
    /// What the containers of `manifests/base` have: user 0 without any capability but NET_ADMIN, nor a way to
    /// others; warren-tunnel is started by somebody else ([`Node::start_tunnel`]).
    Manifest,
    /// User 0 without any capability.
    None,
}

impl Rights {
    /// The beginning of a command line.
    pub(super) fn command(self, node: &Node, program: &str) -> Result<Command> {
        let program = binary(program)?;
        let capabilities = match self {
            Self::Root => return Ok(node.netns.command(program)),
            Self::Manifest => "-all,+net_admin",
            Self::None => "-all",
        };
        let mut command = node.netns.command("setpriv");
        command.arg(format!("--bounding-set={capabilities}")).arg(format!("--inh-caps={capabilities}"));
        command.arg("--no-new-privs").arg(program);
        Ok(command)
    }
}

/// The path of one of Warren's programs: in `$WARREN_BIN_DIR`, or in the directory that cargo built the
/// current program into.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("WARREN_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let program = std::env::current_exe().context("finding the current program")?;
            let directory = program.parent().context("a program without directory")?;
            // Tests are built into target/PROFILE/deps, programs into target/PROFILE.
            let directory = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
            directory.context("a target directory without parent")?.to_owned()
        }
    };
    let path = directory.join(name);
    ensure!(
        path.is_file(),
        "{} does not exist; build it (cargo build -p warrend -p warren-tunnel), or set WARREN_BIN_DIR",
        path.display()
    );
    // Commands of a namespace start in /.
    std::path::absolute(&path).with_context(|| format!("making {} absolute", path.display()))
}

impl Node {
    /// Starts warrend. It must not run already; its end is seen by [`Node::wait_warrend`] and the like.
    pub fn start_warrend(&self, options: &WarrendOptions) -> Result<()> {
        let WarrendOptions { enforcement, resync, tell_cidrs, registry, backend, rights, extra } = options;
        let mut running = self.warrend.lock().expect("no thread panics with the lock");
        ensure!(running.is_none(), "warrend already runs on {}", self.name);

        let mut command = rights.command(self, "warrend")?;
        let registry = registry.clone().unwrap_or_else(|| self.registry_argument());
        command.args(["--node", &self.name, "--registry", &registry]);
        command.arg("--state-dir").arg(self.state_dir());
        match rights {
            Rights::Root | Rights::None => command.arg("--tunnel-program").arg(binary("warren-tunnel")?),
            Rights::Manifest => command.arg("--external-tunnel"),
        };
        command.args(["--backend", backend.unwrap_or(self.backend.argument())]);
        command.args([
            "--enforcement",
            if *enforcement == Enforcement::Strict { "strict" } else { "permissive" },
        ]);
        if *tell_cidrs {
            command.args(["--cluster-cidrs", &joined(&self.plan.cluster_cidrs())]);
            command.args(["--node-cidrs", &joined(&self.plan.node_cidrs())]);
            if self.plan.registry == Registry::Kubernetes {
                command.args(["--service-cidrs", real::SERVICE_CIDRS]);
            }
        }
        let slow = wait::patience() > 1.0;
        if let Some(resync) = resync.as_deref().or(slow.then_some(RESYNC)) {
            command.args(["--resync", resync]);
        }
        command.args(extra);
        self.log_output(&mut command)?;
        *running = Some(command.spawn().with_context(|| format!("starting warrend on {}", self.name))?);
        Ok(())
    }

    /// The registry as warrend's `--registry` takes it.
    fn registry_argument(&self) -> String {
        match self.plan.registry {
            Registry::Directory => format!("dir:{}", self.directory.join("registry").display()),
            Registry::Kubernetes => format!("kubernetes:{}", self.kubeconfig_path().display()),
        }
    }

    pub(super) fn log_output(&self, command: &mut Command) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .with_context(|| format!("opening {}", self.log_path().display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(())
    }

    /// Takes all of Warren's off the node, with `warrend teardown`; warrend must not run.
    pub fn teardown(&self) -> Result<()> {
        let mut command = self.netns.command(binary("warrend")?);
        command.arg("teardown").arg("--state-dir").arg(self.state_dir());
        process::output(&mut command).map(drop).with_context(|| format!("the teardown of {}", self.name))
    }

    /// The pid of warrend, if it runs.
    pub fn warrend_pid(&self) -> Option<u32> {
        let mut running = self.warrend.lock().expect("no thread panics with the lock");
        let child = running.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// SIGKILLs warrend and waits until it is gone.
    pub fn kill_warrend(&self) -> Result<ExitStatus> {
        self.signal_warrend(Signal::SIGKILL)?;
        self.wait_warrend(Duration::from_secs(5))
    }

    /// SIGTERMs warrend and waits until it has ended.
    pub fn stop_warrend(&self) -> Result<ExitStatus> {
        self.signal_warrend(Signal::SIGTERM)?;
        self.wait_warrend(Duration::from_secs(10))
    }

    /// Stops warrend's clock: it does nothing until [`Node::resume_warrend`].
    pub fn pause_warrend(&self) -> Result<()> {
        self.signal_warrend(Signal::SIGSTOP)
    }

    /// Lets warrend go on.
    pub fn resume_warrend(&self) -> Result<()> {
        self.signal_warrend(Signal::SIGCONT)
    }

    /// Sends warrend a signal.
    pub fn signal_warrend(&self, signal: Signal) -> Result<()> {
        let pid = self.warrend_pid().with_context(|| format!("warrend does not run on {}", self.name))?;
        kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("sending {signal} to warrend"))
    }

    /// Waits until warrend has ended.
    pub fn wait_warrend(&self, limit: Duration) -> Result<ExitStatus> {
        let mut running = self.warrend.lock().expect("no thread panics with the lock");
        let child = running.as_mut().with_context(|| format!("warrend was not started on {}", self.name))?;
        let status = wait::until(&format!("the end of warrend on {}", self.name), limit, || {
            child.try_wait()?.context("it still runs")
        })?;
        *running = None;
        Ok(status)
    }
}

impl Drop for Node {
    /// Leaves no zombie; all else in the node's namespaces is killed with them.
    fn drop(&mut self) {
        for slot in [&mut self.warrend, &mut self.tunnel] {
            if let Some(child) = slot.get_mut().ok().and_then(Option::as_mut) {
                // Both fail only where it has ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn joined(cidrs: &[ipnet::IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
