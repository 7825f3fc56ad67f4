//! The loop that owns all state: look, plan, compare, act, look again, report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use warren_api::status::{Enforcement, Status};
use warren_api::{Backend, PublicKey, annotations, names};
use warren_core::{
    Action, Desired, Guard, Numbers, Own, PeerInfo, Plan, RouteKind, Settings, Snapshot, Withdrawal, diff,
    plan, renewals,
};

use crate::args::{self, BackendChoice, Shares};
use crate::hands::{Hands, Seen};
use crate::happening;
use crate::http::{self, Board};
use crate::kernel::View;
use crate::kernel::watch::Notices;
use crate::keystore::{self, Identity};
use crate::paths::Paths;
use crate::registry::Registry;
use crate::report::{Report, Voice};
use crate::settings::Source;
use crate::silence::Silence;
use crate::spread::Spread;
use crate::tunnel::Userspace;

/// The epoch of the only key there is until keys rotate.
const EPOCH: u64 = 0;

/// How long to let events gather before looking: an editor, a CNI plugin or this agent's own work changes
/// several things at once. Longer, up to the second figure, while events come one after the other and none
/// of them concerns Warren: on a node with a routing daemon, looking must not become all there is.
const COALESCE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// After so long without an event, the next does not come one after the other.
const CALM: Duration = Duration::from_millis(500);

/// How long to wait before trying again what failed: first, and at most. Events do not shorten it, or a
/// failing action that itself causes events would spin.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// How often to look without being told of a change, where `--resync` does not say. With thousands of nodes a look
/// takes a tenth of a second: the daemon rests so many times as long as it took, between the first figure and the last,
/// so that all looks cost about two thousandths of a core. While something fails it is in more of a hurry.
const RESYNC: Duration = Duration::from_secs(5);
const IDLE: u32 = 600;
const LONGEST: Duration = Duration::from_secs(60);
const BUSY: u32 = 4;

/// How long packets may be in a tunnel's queues, on a busy machine. Where the way into a tunnel is taken away and they may
/// go on without it (permissive), its peers stay for so long: what was on its way arrives.
const DRAIN: Duration = Duration::from_millis(50);

/// Runs the daemon of one node until SIGTERM or SIGINT.
pub async fn run(args: args::Run, shares: Shares) -> anyhow::Result<()> {
    let args::Run {
        node,
        registry,
        settings,
        state_dir,
        backend,
        lanes,
        tunnel_program,
        external_tunnel,
        listen_port,
        http,
        metrics,
        enforcement,
        cluster_cidrs,
        node_cidrs,
        service_cidrs,
        api_servers,
        api_server_port,
        encrypt_host,
        withdraw,
        resync,
    } = args;
    args::check_ports(listen_port, lanes).map_err(anyhow::Error::msg)?;
    let numbers = Numbers { listen_port, api_server_port, ..shares.numbers() };
    let flags = Settings {
        enforcement,
        cluster_cidrs,
        node_cidrs,
        service_cidrs,
        api_servers,
        encrypt_host,
        numbers,
        withdraw,
    };
    let settings = Source::open(flags, settings);
    let identity = keystore::load_or_create(&state_dir, EPOCH)?;
    let program = tunnel_program.unwrap_or_else(Userspace::default_program);
    let program = (!external_tunnel).then_some(program);
    let changed = Arc::new(Notify::new());
    let hands = Hands::new(program, &state_dir, numbers)?;
    let Carrier { backend, fallback } = choose(backend, &hands);
    let mut agent = Agent {
        backend,
        fallback,
        lanes,
        registry: Registry::open(registry, node.clone(), &changed).await?,
        paths: Paths::start(changed.clone()),
        notices: Notices::default(),
        changed: changed.clone(),
        node,
        identity,
        listen_port,
        settings,
        status: None,
        hands,
        voice: Voice::default(),
        failed: Vec::new(),
        guarded: Guard::default(),
        peers: BTreeMap::new(),
        settled: false,
        spread: Spread::default(),
        silence: Silence::default(),
    };
    tracing::info!(node = agent.node, public_key = %agent.identity.public(), "warrend starts");

    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let (board, mut visitors) = Board::new();
    http::serve(http, board.clone()).await?;
    if let Some(address) = metrics {
        http::serve_metrics(address, board.clone()).await?;
    }

    let mut retry = RETRY.0;
    let mut coalesce = COALESCE.0;
    let mut last_event = Instant::now();
    let mut pulse = interval(http::PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let began = Instant::now();
        let report = agent.pass().await;
        let Report { failed, acted, .. } = report;
        board.publish(report);
        let took = began.elapsed();
        coalesce = if acted { COALESCE.0 } else { (coalesce * 2).min(COALESCE.1) };
        let wait = if failed {
            retry.max((took * BUSY).min(RETRY.1))
        } else {
            resync.unwrap_or_else(|| (took * IDLE).clamp(RESYNC, LONGEST))
        };
        retry = if failed { (retry * 2).min(RETRY.1) } else { RETRY.0 };

        let deadline = Instant::now() + wait;
        loop {
            tokio::select! {
                () = changed.notified(), if !failed => {
                    if last_event.elapsed() > CALM {
                        coalesce = COALESCE.0;
                    }
                    last_event = Instant::now();
                    sleep(coalesce).await;
                    break;
                }
                () = tokio::time::sleep_until(deadline) => break,
                _ = pulse.tick() => board.alive(),
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

/// Takes everything of Warren's off this node, in the order that keeps traffic safe to the end.
pub async fn teardown(state_dir: &Path, shares: Shares) -> anyhow::Result<()> {
    let program = Some(Userspace::default_program());
    let hands = Hands::new(program, state_dir, shares.numbers())?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stopped = BTreeSet::new();
    loop {
        let seen = hands.look().await?;
        let mut failures = Vec::new();
        let actions = diff(&Desired::default(), &seen.observed(&Desired::default(), &mut failures));
        anyhow::ensure!(failures.is_empty(), failures.join("; "));
        // What was told to go and has not is served by nobody any more, as if it were somebody else's.
        let slow: Vec<&str> =
            seen.view.foreign.intersection(&stopped).map(|interface| &**interface).collect();
        if actions.is_empty() && slow.is_empty() {
            hands.spread_as_before().context("flows cannot be spread as before")?;
            tracing::info!("nothing of Warren's is left on this node; its keys are");
            return Ok(());
        }
        let left = || if actions.is_empty() { slow.join(", ") } else { list(&actions) };
        anyhow::ensure!(Instant::now() < deadline, "still there after 10 s: {}", left());
        for action in &actions {
            tracing::info!("{action}");
            hands.apply(action, None, seen.counters()).await?;
            if let Action::StopTunnel { interface, .. } = action {
                stopped.insert(interface.clone());
            }
        }
        // The tunnel's process needs a moment to take its interface away.
        sleep(Duration::from_millis(50)).await;
    }
}

/// What carries the tunnels, and why it is not the kernel where it was to be.
struct Carrier {
    backend: Backend,
    fallback: Option<String>,
}

/// Decides on the backend, for as long as this program runs: what carries a node's tunnels should not come and go. The
/// kernel's is tried also where it is insisted on: what it lacks is told at once, and its first change need not find out
/// what it knows.
fn choose(choice: BackendChoice, hands: &Hands) -> Carrier {
    if choice == BackendChoice::Userspace {
        return Carrier { backend: Backend::Userspace, fallback: None };
    }
    match hands.probe() {
        Ok(()) => {
            tracing::info!("WireGuard in the kernel carries the tunnels");
            Carrier { backend: Backend::Kernel, fallback: None }
        }
        Err(error) if choice == BackendChoice::Kernel => {
            let why = format!("{error:#}");
            tracing::warn!(why, "WireGuard in the kernel cannot be used yet; --backend kernel waits for it");
            Carrier { backend: Backend::Kernel, fallback: None }
        }
        Err(error) => {
            let why = format!("{error:#}");
            tracing::warn!(why, "WireGuard in the kernel cannot be used; warren-tunnel carries the tunnels");
            Carrier { backend: Backend::Userspace, fallback: Some(why) }
        }
    }
}

struct Agent {
    node: String,
    backend: Backend,
    /// Why it is not the kernel's, where that was asked for first.
    fallback: Option<String>,
    lanes: u8,
    identity: Identity,
    listen_port: u16,
    settings: Source,
    registry: Registry,
    paths: Paths,
    /// The kernel's, each of which is told to `changed`.
    notices: Notices,
    changed: Arc<Notify>,
    hands: Hands,
    voice: Voice,
    /// What the last look found, to tell what happened since.
    status: Option<Status>,
    /// The actions of the last look, if some of them failed: trying them again is no news.
    failed: Vec<Action>,
    /// What was to be guarded at the last look: the only thing remembered, for the moment in which the guard is
    /// flushed while the registry does not name a node that it named before.
    guarded: Guard,
    /// The peers of the last look, to tell whose tunnel was replaced by another kind.
    peers: BTreeMap<PublicKey, PeerInfo>,
    /// Whether it was seen that nobody else has what is to be Warren's. Who takes it later is not let have it.
    settled: bool,
    spread: Spread,
    silence: Silence,
}

impl Agent {
    /// Looks at everything, puts right what is not as it should be, and says what came of it.
    async fn pass(&mut self) -> Report {
        let mut failures = Vec::new();
        // Before anything is read: what changes from then on is another reason to look.
        if let Err(error) = self.notices.subscribe(&self.changed) {
            failures.push(format!("{:#}", anyhow::Error::from(error)));
        }
        if !self.settled {
            let collisions = self.hands.collisions().await;
            let collisions = collisions.unwrap_or_else(|error| vec![format!("{error:#}")]);
            if !collisions.is_empty() {
                failures.extend(collisions);
                return self.voice.report_blind(failures);
            }
            self.settled = true;
        }
        if let Err(error) = self.settings.read() {
            failures.push(format!("{error:#}"));
        }
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
        self.end_silence(&seen);
        let mut plan = self.plan(records, &seen);
        if self.paths.follow(plan.desired.tunnels.values()) {
            plan = self.plan(self.registry.records(), &seen);
        }
        for interface in &seen.view.foreign {
            plan.desired.do_without(interface);
            failures.push(format!(
                "the interface {interface} is not Warren's; remove or rename it: its name is needed"
            ));
        }
        if let Err(error) = self.hands.forget(&plan, &seen) {
            failures.push(format!("{error:#}"));
        }
        self.guarded = plan.desired.guard.clone().unwrap_or_default();
        let spreads = self.lanes > 1 && plan.withdrawal != Withdrawal::Done;
        if spreads {
            self.spread.by_ports(&self.hands, &mut seen);
        }
        let renewals = renewals(&self.peers, &plan, seen.sound_devices());
        if !renewals.is_empty() {
            self.apply(&renewals, &seen, &mut failures).await;
            match self.hands.look().await {
                Ok(after) => seen = after,
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        let actions = pending(&plan, &seen, &mut failures);
        let acted = !actions.is_empty();
        if acted {
            self.apply(&actions, &seen, &mut failures).await;
            match self.hands.look().await {
                Ok(after) => seen = after,
                Err(error) => failures.push(format!("{error:#}")),
            }
            let rest = pending(&plan, &seen, &mut failures);
            if failures.is_empty() && !rest.is_empty() {
                failures.push(format!("had no effect: {}", list(&rest)));
            }
        }
        // Not before the routes over several lanes are gone.
        if !spreads && failures.is_empty() {
            self.spread.as_before(&self.hands, &mut seen);
        }
        self.failed = if failures.is_empty() { Vec::new() } else { actions };
        if let Err(error) = self.publish(&plan, &seen, failures.is_empty()) {
            failures.push(format!("{error:#}"));
        }
        let settings = self.settings.current();
        let registry = self.registry.status();
        let own = self.own(&seen.view);
        let report = self.voice.report(own, settings, &plan, &seen, registry, failures);
        self.tell(report.status.as_ref());
        self.peers = plan.peers;
        Report { acted, ..report }
    }

    /// Announces the node once its first lane is there, on which all peers count; takes that back once nothing leads
    /// into it. Of its other lanes a peer uses those that work, so the announcement need not wait for them.
    fn publish(&self, plan: &Plan, seen: &Seen, sound: bool) -> anyhow::Result<()> {
        match &plan.announcement {
            Some(announcement) if seen.is_up(&names::interface(EPOCH, 0), &plan.desired) => {
                self.registry.publish(&annotations::publish(announcement))
            }
            _ if sound && plan.withdrawal != Withdrawal::None => self.registry.publish(&[]),
            _ => Ok(()),
        }
    }

    /// Tells the cluster how the node is, and what happened since the last look.
    fn tell(&mut self, status: Option<&Status>) {
        let Some(status) = status else { return };
        self.registry.ready(status.ready && !status.withdrawn);
        let news = happening::between(self.status.as_ref(), status);
        news.into_iter().for_each(|happening| self.registry.tell(happening));
        self.status = Some(status.clone());
    }

    /// Kills a tunnel that has not answered for many looks in a row: it is stopped or stuck, and the peers'
    /// packets end there. A new one is started as after any other death.
    fn end_silence(&mut self, seen: &Seen) {
        let silent = seen.devices.iter().filter(|(_, device)| device.is_err()).map(|(name, _)| name);
        for interface in self.silence.count(silent) {
            match self.hands.kill_tunnel(&interface) {
                Ok(None) => tracing::error!(
                    %interface,
                    "the tunnel does not answer any more; whoever runs it should restart it"
                ),
                Ok(Some(pid)) => {
                    tracing::error!(%interface, pid, "the tunnel did not answer any more and was killed")
                }
                Err(error) => tracing::error!("the silent tunnel {interface} cannot be killed: {error:#}"),
            }
        }
    }

    fn own(&self, view: &View) -> Own {
        Own {
            name: self.node.clone(),
            public_key: self.identity.public(),
            epoch: EPOCH,
            port: self.listen_port,
            backend: self.backend,
            fallback: self.fallback.clone(),
            lanes: self.lanes,
            local_addresses: view.local_addresses.clone(),
        }
    }

    fn plan(&self, records: Vec<warren_core::Record>, seen: &Seen) -> Plan {
        let mut settings = self.settings.current().clone();
        settings.api_servers.extend(self.registry.server());
        let paths = self.paths.narrow();
        let snapshot = Snapshot { own: self.own(&seen.view), records, settings, paths };
        plan(&snapshot, &seen.standing(&self.guarded))
    }

    /// Does all of it, also after a failure: whatever stands is better than what does not. Only what would be
    /// taken away stays until everything that is to take its place stands, and nothing is done to the interface of a tunnel
    /// that could not be started, nor led into it.
    async fn apply(&mut self, actions: &[Action], seen: &Seen, failures: &mut Vec<String>) {
        const EACH: usize = 12;
        let again = self.failed == actions;
        let permissive = self.settings.current().enforcement == Enforcement::Permissive;
        let mut missing = BTreeSet::new();
        for run in Action::runs(actions) {
            let run = &*Action::without(run, &missing);
            if run.first().is_none_or(|action| action.removes() && !failures.is_empty()) {
                continue;
            }
            for action in run {
                if actions.len() <= EACH && !again {
                    tracing::info!("{action}");
                } else {
                    tracing::debug!("{action}");
                }
            }
            let stops = matches!(run[0], Action::StopTunnel { .. });
            if stops && permissive {
                sleep(DRAIN).await;
            }
            let outcome = self.hands.apply_run(run, Some(&self.identity), seen.counters()).await;
            failures.extend(outcome.errors.iter().map(|error| format!("{error:#}")));
            missing.extend(outcome.missing);
            let leaves = |action: &Action| match action {
                Action::RemoveRoute(route) => matches!(route.kind, RouteKind::Tunnel { .. }),
                _ => false,
            };
            if permissive && run.iter().any(leaves) {
                sleep(DRAIN).await;
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
            board.refresh(&seen, self.registry.status());
        }
        let _ = first.send(());
        while let Ok(visitor) = visitors.try_recv() {
            let _ = visitor.send(());
        }
    }
}

/// What is still to do.
fn pending(plan: &Plan, seen: &Seen, failures: &mut Vec<String>) -> Vec<Action> {
    let mut actions = diff(&plan.desired, &seen.observed(&plan.desired, failures));
    actions.retain(|action| !(plan.hold && action.removes()));
    actions
}

/// The first few of many actions, for one line.
fn list(actions: &[Action]) -> String {
    const FEW: usize = 3;
    let few: Vec<String> = actions.iter().take(FEW).map(Action::to_string).collect();
    let more = actions.len().saturating_sub(FEW);
    if more > 0 { format!("{}; and {more} more", few.join("; ")) } else { few.join("; ") }
}
