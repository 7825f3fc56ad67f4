//! The loop that owns all state: look, plan, compare, act, look again, report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use warren_api::{Backend, annotations, names};
use warren_core::{Action, Desired, Observed, ObservedDevice, Own, Plan, Settings, Snapshot, diff, plan};

use crate::args::{self, BackendChoice};
use crate::guard::{self, Found};
use crate::http::{self, Board};
use crate::kernel::watch::Watch;
use crate::kernel::{Kernel, View};
use crate::keystore::{self, Identity};
use crate::registry::{DirRegistry, dir};
use crate::report::{Report, Voice};
use crate::tunnel::Userspace;

/// The epoch of the only key there is until keys rotate.
const EPOCH: u64 = 0;

/// How long to let events gather before looking: an editor, a CNI plugin or this agent's own work changes
/// several things at once. Longer, up to the second figure, while events come one after the other and none
/// of them concerns Warren: on a node with a routing daemon, looking must not become all there is.
const COALESCE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// How long to wait before trying again what failed: first, and at most. Events do not shorten it, or a
/// failing action that itself causes events would spin.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Runs the daemon of one node until SIGTERM or SIGINT.
pub async fn run(args: args::Run) -> anyhow::Result<()> {
    let args::Run {
        node,
        registry: args::Registry::Dir(directory),
        state_dir,
        backend: BackendChoice::Userspace,
        tunnel_program,
        listen_port,
        http,
        enforcement,
        cluster_cidrs,
        node_cidrs,
        resync,
    } = args;
    let identity = keystore::load_or_create(&state_dir, EPOCH)?;
    let program = tunnel_program.unwrap_or_else(Userspace::default_program);
    let mut agent = Agent {
        registry: DirRegistry::new(directory.clone(), node.clone()),
        node,
        identity,
        listen_port,
        settings: Settings { enforcement, cluster_cidrs, node_cidrs },
        hands: Hands::new(program)?,
        voice: Voice::default(),
        failed: Vec::new(),
    };
    tracing::info!(node = agent.node, public_key = %agent.identity.public(), "warrend starts");

    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let changed = Arc::new(Notify::new());
    watch(directory, &changed)?;
    let (board, mut visitors) = Board::new();
    http::serve(http, board.clone()).await?;

    let mut retry = RETRY.0;
    let mut coalesce = COALESCE.0;
    loop {
        let report = agent.pass().await;
        let Report { failed, acted, .. } = report;
        board.publish(report);
        coalesce = if acted { COALESCE.0 } else { (coalesce * 2).min(COALESCE.1) };
        let wait = if failed { retry } else { resync };
        retry = if failed { (retry * 2).min(RETRY.1) } else { RETRY.0 };

        let deadline = Instant::now() + wait;
        loop {
            tokio::select! {
                () = changed.notified(), if !failed => {
                    sleep(coalesce).await;
                    break;
                }
                () = tokio::time::sleep_until(deadline) => {
                    coalesce = COALESCE.0;
                    break;
                }
                Some(visitor) = visitors.recv() => agent.serve(&board, &mut visitors, visitor).await,
                _ = terminate.recv() => return goodbye("SIGTERM"),
                _ = interrupt.recv() => return goodbye("SIGINT"),
            }
        }
    }
}

fn goodbye(signal: &str) -> anyhow::Result<()> {
    tracing::info!(signal, "warrend ends; tunnel, routes and guard stay in place");
    Ok(())
}

/// Has everything that can change watched, before the first look.
fn watch(directory: PathBuf, changed: &Arc<Notify>) -> anyhow::Result<()> {
    let kernel = Watch::subscribe().context("the kernel's notices cannot be subscribed to")?;
    let notify = changed.clone();
    tokio::spawn(async move {
        if let Err(error) = kernel.run(&notify).await {
            tracing::error!(%error, "the kernel's notices stopped; changes are now found by the timer");
        }
    });
    let notify = changed.clone();
    tokio::spawn(async move { dir::watch(directory, &notify).await });
    Ok(())
}

/// Takes everything of Warren's off this node, in the order that keeps traffic safe to the end.
pub async fn teardown() -> anyhow::Result<()> {
    let hands = Hands::new(Userspace::default_program())?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let seen = hands.look().await?;
        let device = seen.device.as_ref().ok().cloned().flatten();
        let actions = diff(&Desired::default(), &seen.observed(device));
        if actions.is_empty() {
            tracing::info!("nothing of Warren's is left on this node; its keys are");
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "still there after 10 s: {}", list(&actions));
        for action in &actions {
            tracing::info!("{action}");
            hands.apply(action, None, &seen.found).await?;
        }
        // The tunnel's process needs a moment to take its interface away.
        sleep(Duration::from_millis(50)).await;
    }
}

struct Agent {
    node: String,
    identity: Identity,
    listen_port: u16,
    settings: Settings,
    registry: DirRegistry,
    hands: Hands,
    voice: Voice,
    /// The actions of the last look, if some of them failed: trying them again is no news.
    failed: Vec<Action>,
}

impl Agent {
    /// Looks at everything, puts right what is not as it should be, and says what came of it.
    async fn pass(&mut self) -> Report {
        let mut failures = Vec::new();
        let records = self.registry.read().unwrap_or_else(|error| {
            failures.push(format!("{error:#}"));
            self.registry.records()
        });
        let mut seen = match self.hands.look().await {
            Ok(seen) => seen,
            Err(error) => {
                failures.push(format!("{error:#}"));
                return self.voice.report_blind(failures);
            }
        };
        let plan = self.plan(records, &seen);
        let actions = self.pending(&plan, &seen, &mut failures);
        let acted = !actions.is_empty();
        if acted {
            self.apply(&actions, &seen, &mut failures).await;
            match self.hands.look().await {
                Ok(after) => seen = after,
                Err(error) => failures.push(format!("{error:#}")),
            }
            let rest = self.pending(&plan, &seen, &mut failures);
            if failures.is_empty() && !rest.is_empty() {
                failures.push(format!("had no effect: {}", list(&rest)));
            }
        }
        self.failed = if failures.is_empty() { Vec::new() } else { actions };
        if let (Some(announcement), Ok(Some(_))) = (&plan.announcement, &seen.device) {
            match self.registry.publish(&annotations::publish(announcement)) {
                Ok(true) => tracing::info!("announced to the registry"),
                Ok(false) => {}
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        let report = self.voice.report(self.own(&seen.view), &self.settings, &plan, &seen, failures);
        Report { acted, ..report }
    }

    fn own(&self, view: &View) -> Own {
        Own {
            name: self.node.clone(),
            public_key: self.identity.public(),
            epoch: EPOCH,
            port: self.listen_port,
            backend: Backend::Userspace,
            local_addresses: view.local_addresses.clone(),
        }
    }

    fn plan(&self, records: Vec<warren_core::Record>, seen: &Seen) -> Plan {
        let snapshot = Snapshot { own: self.own(&seen.view), records, settings: self.settings.clone() };
        let guarded = seen.found.guard.as_ref().map(|guard| guard.remote_pods.clone());
        plan(&snapshot, &guarded.unwrap_or_default())
    }

    /// What is still to do.
    fn pending(&self, plan: &Plan, seen: &Seen, failures: &mut Vec<String>) -> Vec<Action> {
        let device = match (&seen.device, &plan.desired.tunnel) {
            (Ok(device), _) => device.clone(),
            (Err(error), tunnel) => {
                let error = format!("{error:#}");
                if !failures.contains(&error) {
                    failures.push(error);
                }
                tunnel.as_ref().map(ObservedDevice::from)
            }
        };
        let mut actions = diff(&plan.desired, &seen.observed(device));
        actions.retain(|action| !(plan.hold && action.removes()));
        actions
    }

    /// Does all of it, also after a failure: whatever stands is better than what does not.
    async fn apply(&mut self, actions: &[Action], seen: &Seen, failures: &mut Vec<String>) {
        const EACH: usize = 12;
        let again = self.failed == actions;
        for action in actions {
            if actions.len() <= EACH && !again {
                tracing::info!("{action}");
            } else {
                tracing::debug!("{action}");
            }
            if let Err(error) = self.hands.apply(action, Some(&self.identity), &seen.found).await {
                failures.push(format!("{error:#}"));
            }
        }
        if actions.len() > EACH && !again {
            tracing::info!(actions = actions.len(), failed = failures.len(), "brought the node up to date");
        }
    }

    /// Answers visitors who want to see the state of now, with one look for all who are waiting.
    async fn serve(
        &mut self,
        board: &Board,
        visitors: &mut mpsc::Receiver<http::Visitor>,
        first: http::Visitor,
    ) {
        if let Ok(seen) = self.hands.look().await {
            board.refresh(&seen);
        }
        let _ = first.send(());
        while let Ok(visitor) = visitors.try_recv() {
            let _ = visitor.send(());
        }
    }
}

/// The first few of many actions, for one line.
fn list(actions: &[Action]) -> String {
    const FEW: usize = 3;
    let few: Vec<String> = actions.iter().take(FEW).map(Action::to_string).collect();
    let more = actions.len().saturating_sub(FEW);
    if more > 0 { format!("{}; and {more} more", few.join("; ")) } else { few.join("; ") }
}

/// All adapters that read and change this node.
pub struct Hands {
    kernel: Kernel,
    tunnel: Userspace,
}

/// All that was read back at one moment.
#[derive(Debug)]
pub struct Seen {
    /// From the kernel's routing.
    pub view: View,
    /// From nftables.
    pub found: Found,
    /// From the tunnel, which may not answer.
    pub device: anyhow::Result<Option<ObservedDevice>>,
}

impl Seen {
    /// What `warren-core` compares with; `device` in place of what the tunnel said.
    fn observed(&self, device: Option<ObservedDevice>) -> Observed {
        Observed {
            guard: self.found.guard.clone(),
            guard_table: self.found.table,
            link: self.view.link.clone(),
            device,
            routes: self.view.routes.clone(),
            rules: self.view.rules.clone(),
        }
    }
}

impl Hands {
    fn new(program: PathBuf) -> anyhow::Result<Self> {
        let tunnel = Userspace::new(program, names::interface(EPOCH, 0));
        Ok(Self { kernel: Kernel::open()?, tunnel })
    }

    async fn look(&self) -> anyhow::Result<Seen> {
        let (view, found, device) =
            tokio::join!(self.kernel.view(self.tunnel.interface()), guard::find(), self.tunnel.observe());
        Ok(Seen { view: view?, found: found?, device: device.map_err(anyhow::Error::from) })
    }

    async fn apply(&self, action: &Action, identity: Option<&Identity>, found: &Found) -> anyhow::Result<()> {
        match action {
            Action::ReplaceGuard(_) | Action::UpdateGuard { .. } | Action::RemoveGuard => {
                guard::apply(action, found.counters).await?;
            }
            Action::StartTunnel { .. } => self.tunnel.start().await?,
            Action::ConfigureDevice(change) => {
                let identity = identity.context("a device is configured only by the daemon")?;
                self.tunnel.configure(change, identity).await?;
            }
            Action::StopTunnel => self.tunnel.stop().context("the tunnel's socket cannot be removed")?,
            Action::SetLink { .. } | Action::AddAddress(_) | Action::RemoveAddress(_) => {
                self.kernel.apply(self.tunnel.interface(), action).await?;
            }
            Action::AddRoute(_) | Action::RemoveRoute(_) | Action::AddRule(_) | Action::RemoveRule(_) => {
                self.kernel.apply(self.tunnel.interface(), action).await?;
            }
        }
        Ok(())
    }
}
