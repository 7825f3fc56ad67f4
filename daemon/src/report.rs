//! What a look found, for those who ask over HTTP and for the log. Said once, not at each look.

use std::collections::BTreeSet;

use warren_api::status::{PeerStatus, Quarantined, RegistryStatus, Status, TunnelCounters};
use warren_core::{ObservedDevice, ObservedPeer, Own, Plan, Settings, Withdrawal};

use crate::hands::Seen;

/// What came of one look.
#[derive(Debug, Clone)]
pub struct Report {
    /// The node's state; absent if nothing could be read.
    pub status: Option<Status>,
    /// Whether something failed and is to be tried again soon.
    pub failed: bool,
    /// Why, for a human.
    pub failures: Vec<String>,
    /// Whether there was something to do.
    pub acted: bool,
}

/// Says in the log what is new, and what is over.
#[derive(Debug, Default)]
pub struct Voice {
    quarantined: BTreeSet<Quarantined>,
    waiting: BTreeSet<String>,
    problems: BTreeSet<String>,
    ready: Option<bool>,
    withdrawal: Withdrawal,
}

impl Voice {
    /// Reports a look that saw nothing.
    pub fn report_blind(&mut self, failures: Vec<String>) -> Report {
        self.say_problems(&failures);
        self.say_ready(false);
        Report { status: None, failed: true, failures, acted: false }
    }

    /// Reports a look.
    pub fn report(
        &mut self,
        own: Own,
        settings: &Settings,
        plan: &Plan,
        seen: &Seen,
        registry: Option<RegistryStatus>,
        failures: Vec<String>,
    ) -> Report {
        // That nothing comes from a registry is no problem for what stands; that peers learn nothing of this node is.
        let unwritten = registry.iter().flat_map(|registry| &registry.unwritten);
        let problems: Vec<String> = plan.problems.iter().chain(&failures).chain(unwritten).cloned().collect();
        let ready = problems.is_empty();
        self.say_quarantined(&plan.quarantined);
        self.say_waiting(&plan.waiting);
        self.say_problems(&problems);
        self.say_ready(ready);
        self.say_withdrawn(plan.withdrawal);
        let first = plan.desired.tunnels.iter().next();
        let mut status = Status {
            node: own.name,
            public_key: own.public_key,
            epoch: own.epoch,
            backend: own.backend,
            fallback: own.fallback,
            interface: first.map(|(interface, _)| interface.to_string()).unwrap_or_default(),
            lanes: own.lanes,
            spread_by_ports: None,
            mtu: first.map(|(_, tunnel)| tunnel.mtu).unwrap_or_default(),
            enforcement: settings.enforcement,
            ready,
            problems,
            pod_cidrs: plan.announcement.iter().flat_map(|a| a.pod_cidrs.iter().copied()).collect(),
            endpoints: plan.announcement.iter().flat_map(|a| a.endpoints.iter().copied()).collect(),
            peers: peers(plan),
            quarantined: plan.quarantined.clone(),
            waiting: plan.waiting.clone(),
            registry,
            withdrawn: plan.withdrawal != Withdrawal::None,
            guard: seen.counters(),
            tunnel: TunnelCounters::default(),
        };
        refresh(&mut status, seen, None);
        Report { status: Some(status), failed: !failures.is_empty(), failures, acted: false }
    }

    fn say_quarantined(&mut self, now: &[Quarantined]) {
        let now: BTreeSet<Quarantined> = now.iter().cloned().collect();
        for Quarantined { node, reason } in now.difference(&self.quarantined) {
            tracing::warn!(node, reason, "node quarantined: its pods cannot be reached");
        }
        for Quarantined { node, reason } in self.quarantined.difference(&now) {
            tracing::info!(node, reason, "no longer a reason to quarantine the node");
        }
        self.quarantined = now;
    }

    fn say_waiting(&mut self, now: &[String]) {
        let now: BTreeSet<String> = now.iter().cloned().collect();
        for node in now.difference(&self.waiting) {
            tracing::info!(node, "node has announced no key yet: its pods cannot be reached until it does");
        }
        self.waiting = now;
    }

    fn say_problems(&mut self, now: &[String]) {
        let now: BTreeSet<String> = now.iter().cloned().collect();
        for problem in now.difference(&self.problems) {
            tracing::error!("{problem}");
        }
        for problem in self.problems.difference(&now) {
            tracing::info!("solved: {problem}");
        }
        self.problems = now;
    }

    fn say_withdrawn(&mut self, now: Withdrawal) {
        if std::mem::replace(&mut self.withdrawal, now) != now {
            match now {
                Withdrawal::None => tracing::info!("the node is in the mesh again"),
                Withdrawal::Leaving => {
                    tracing::warn!("the node leaves the mesh: its traffic is NOT encrypted any more");
                }
                Withdrawal::Done => tracing::warn!("the node has left the mesh; Warren can be removed"),
            }
        }
    }

    fn say_ready(&mut self, now: bool) {
        if self.ready.replace(now) != Some(now) {
            if now {
                tracing::info!("ready");
            } else {
                tracing::warn!("not ready");
            }
        }
    }
}

/// The peers as they are wanted; what they do is filled in by [`refresh`].
fn peers(plan: &Plan) -> Vec<PeerStatus> {
    // All peers are on the first lane.
    let wanted = plan.desired.tunnels.values().take(1).flat_map(|tunnel| &tunnel.peers);
    let mut peers: Vec<PeerStatus> = wanted
        .filter_map(|(key, peer)| {
            let info = plan.peers.get(key)?;
            Some(PeerStatus {
                node: info.node.clone(),
                public_key: *key,
                backend: info.backend,
                endpoint: None,
                handshake_age: None,
                lanes: 0,
                rx_bytes: 0,
                tx_bytes: 0,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
            })
        })
        .collect();
    peers.sort_by(|a, b| a.node.cmp(&b.node));
    peers
}

/// Brings a status up to date with what was seen since, and with how it stands with the registry now.
pub fn refresh(status: &mut Status, seen: &Seen, registry: Option<RegistryStatus>) {
    if registry.is_some() {
        status.registry = registry;
    }
    status.guard = seen.counters();
    status.spread_by_ports = (status.lanes > 1).then_some(seen.view.spread_by_ports);
    let devices: Vec<&ObservedDevice> =
        seen.devices.values().filter_map(|device| device.as_ref().ok()).collect();
    status.tunnel = TunnelCounters::default();
    devices.iter().for_each(|device| status.tunnel.add(&device.counters));
    for peer in &mut status.peers {
        let lanes: Vec<&ObservedPeer> =
            devices.iter().filter_map(|device| device.peers.get(&peer.public_key)).collect();
        peer.endpoint = lanes.first().and_then(|lane| lane.endpoint);
        let newest = lanes.iter().filter_map(|lane| lane.since_handshake).min();
        peer.handshake_age = newest.map(|since| since.as_secs_f64());
        peer.lanes = lanes.iter().filter(|lane| lane.is_alive()).count() as u8;
        peer.rx_bytes = lanes.iter().map(|lane| lane.rx_bytes).sum();
        peer.tx_bytes = lanes.iter().map(|lane| lane.tx_bytes).sum();
    }
}
