//! All adapters that read and change this node, behind one pair of verbs: look and apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use warren_api::status::GuardCounters;
use warren_api::{Backend, PublicKey};
use warren_core::{
    Action, Desired, DeviceChange, Guard, Numbers, Observed, ObservedDevice, ObservedTunnel, RouteKind,
    Standing,
};

use crate::guard::{self, Found};
use crate::kernel::{Kernel, View};
use crate::keystore::Identity;
use crate::tunnel::Userspace;
use crate::wireguard::Wireguard;

/// The adapters.
pub struct Hands {
    kernel: Kernel,
    wireguard: Wireguard,
    userspace: Userspace,
    numbers: Numbers,
}

/// All that was read back at one moment. The guard and the tunnels may not be readable; the rest of the node is
/// kept in order all the same.
#[derive(Debug)]
pub struct Seen {
    /// From the kernel's routing.
    pub view: View,
    /// From nftables.
    pub found: anyhow::Result<Found>,
    /// From the tunnels, by their interfaces.
    pub devices: BTreeMap<Arc<str>, anyhow::Result<ObservedDevice>>,
    numbers: Numbers,
}

impl Seen {
    /// What `warren-core` compares with. What could not be read is taken to be as desired, so that nothing is
    /// done to it; why it could not goes to `failures`.
    pub fn observed(&self, desired: &Desired, failures: &mut Vec<String>) -> Observed {
        let mut fail = |error: &anyhow::Error| {
            let error = format!("{error:#}");
            if !failures.contains(&error) {
                failures.push(error);
            }
        };
        let (guard, guard_table) = match &self.found {
            Ok(found) => (found.guard.clone(), found.table),
            Err(error) => {
                fail(error);
                (desired.guard.clone(), false)
            }
        };
        let interfaces: BTreeSet<&Arc<str>> = self.view.links.keys().chain(self.devices.keys()).collect();
        let mut tunnels = BTreeMap::new();
        for interface in interfaces {
            let device = match self.devices.get(interface) {
                Some(Ok(device)) => Some(device.clone()),
                Some(Err(error)) => {
                    fail(error);
                    desired.tunnels.get(interface).map(ObservedDevice::from)
                }
                None => None,
            };
            let tunnel = ObservedTunnel { link: self.view.links.get(interface).cloned(), device };
            tunnels.insert(interface.clone(), tunnel);
        }
        let (routes, rules) = (self.view.routes.clone(), self.view.rules.clone());
        Observed { guard, guard_table, tunnels, strict: self.view.strict.clone(), routes, rules }
    }

    /// What is guarded and must not be forgotten: what the guard's sets hold, also where its rules are damaged,
    /// and the `unreachable` routes, which tell the same where the guard is gone; and what `before` was. And which
    /// sessions live.
    pub fn standing(&self, before: &Guard) -> Standing {
        let mut guard = before.clone();
        let found = self.found.as_ref().map(|found| found.sets.clone()).unwrap_or_default();
        for (before, mut found) in [
            (&mut guard.remote_pods, found.remote_pods),
            (&mut guard.remote_nodes, found.remote_nodes),
            (&mut guard.local_pods, found.local_pods),
        ] {
            // Merges two sorted sets, where `extend` would look each network up.
            before.append(&mut found);
        }
        let blocks =
            self.view.routes.iter().filter(|route| {
                route.kind == RouteKind::Unreachable && route.table == self.numbers.pods_table()
            });
        guard.remote_pods.append(&mut blocks.map(|route| route.destination).collect());
        let alive = self.devices.iter().filter_map(|(interface, device)| {
            let peers = device.as_ref().ok()?.peers.iter().filter(|(_, peer)| peer.is_alive());
            Some((interface.clone(), peers.map(|(key, _)| *key).collect::<BTreeSet<PublicKey>>()))
        });
        Standing { guard, alive: alive.collect() }
    }

    /// The tunnels that answer.
    pub fn sound_devices(&self) -> impl Iterator<Item = (&Arc<str>, &ObservedDevice)> {
        self.devices.iter().filter_map(|(interface, device)| Some((interface, device.as_ref().ok()?)))
    }

    /// Whether each tunnel that should be there is, with a device that answers.
    pub fn has_tunnels(&self, desired: &Desired) -> bool {
        let answers = |interface| matches!(self.devices.get(interface), Some(Ok(_)));
        !desired.tunnels.is_empty() && desired.tunnels.keys().all(answers)
    }

    /// The guard's counters.
    pub fn counters(&self) -> GuardCounters {
        self.found.as_ref().map(|found| found.counters).unwrap_or_default()
    }
}

impl Hands {
    /// Adapters for the network namespace of the current thread; `program` starts tunnels in userspace, unless
    /// somebody else does.
    pub fn new(program: Option<PathBuf>, numbers: Numbers) -> anyhow::Result<Self> {
        let (kernel, wireguard) = (Kernel::open(numbers)?, Wireguard::open()?);
        Ok(Self { kernel, wireguard, userspace: Userspace::new(program), numbers })
    }

    /// Whether the kernel has WireGuard, and lets this program use it.
    pub fn probe(&self) -> anyhow::Result<()> {
        Ok(self.wireguard.probe()?)
    }

    /// Who else has what is to be Warren's, each with what to do about it.
    pub async fn collisions(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.kernel.collisions().await?)
    }

    /// Reads everything back. Without the kernel's own word there is nothing to go by.
    pub async fn look(&self) -> anyhow::Result<Seen> {
        let (view, found, userspace) =
            tokio::join!(self.kernel.view(), guard::find(&self.numbers), self.userspace.observe());
        let view = view?;
        let userspace = userspace.context("the tunnels' sockets cannot be listed")?;
        let mut devices: BTreeMap<_, _> =
            userspace.into_iter().map(|(name, device)| (name, device.map_err(Into::into))).collect();
        // Where the kernel has the interface, a socket of its name is what a dead process left behind.
        for interface in
            view.links.iter().filter(|(_, link)| link.backend == Backend::Kernel).map(|(name, _)| name)
        {
            devices.remove(interface);
            let device = self.wireguard.observe(interface).map_err(anyhow::Error::from).transpose();
            devices.extend(device.map(|device| (interface.clone(), device)));
        }
        Ok(Seen { view, found: found.map_err(Into::into), devices, numbers: self.numbers })
    }

    /// Does what can be done together ([`Action::runs`]); returns what went wrong.
    pub async fn apply_run(
        &self,
        run: &[Action],
        identity: Option<&Identity>,
        counters: GuardCounters,
    ) -> Vec<anyhow::Error> {
        match run {
            [Action::AddRoute(_) | Action::RemoveRoute(_), ..] => {
                self.kernel.apply_routes(run).into_iter().map(Into::into).collect()
            }
            run => {
                let mut errors = Vec::new();
                for action in run {
                    errors.extend(self.apply(action, identity, counters).await.err());
                }
                errors
            }
        }
    }

    /// Does one thing. `counters` are carried over where the guard is written anew.
    pub async fn apply(
        &self,
        action: &Action,
        identity: Option<&Identity>,
        counters: GuardCounters,
    ) -> anyhow::Result<()> {
        match action {
            Action::ReplaceGuard(_) | Action::UpdateGuard { .. } | Action::RemoveGuard => {
                guard::apply(action, &self.numbers, counters).await?;
            }
            Action::StartTunnel { interface, backend } => self.start(interface, *backend).await?,
            Action::ConfigureDevice { interface, backend, change } => {
                let identity = identity.context("a device is configured only by the daemon")?;
                self.configure(interface, *backend, change, identity).await?;
            }
            Action::StopTunnel { interface, backend } => self.stop(interface, *backend).await?,
            Action::SetLink { .. }
            | Action::AddAddress { .. }
            | Action::RemoveAddress { .. }
            | Action::Loosen { .. }
            | Action::AddRoute(_)
            | Action::RemoveRoute(_)
            | Action::AddRule(_)
            | Action::RemoveRule(_) => self.kernel.apply(action).await?,
        }
        Ok(())
    }

    async fn start(&self, interface: &str, backend: Backend) -> anyhow::Result<()> {
        match backend {
            Backend::Kernel => {
                // Nobody is to make one of the same name.
                self.userspace.stop(interface).await.context("the tunnel cannot be stopped")?;
                Ok(self.wireguard.create(interface)?)
            }
            Backend::Userspace => Ok(self.userspace.start(interface).await?),
        }
    }

    async fn stop(&self, interface: &str, backend: Backend) -> anyhow::Result<()> {
        match backend {
            Backend::Kernel => Ok(self.wireguard.remove(interface)?),
            Backend::Userspace => self.userspace.stop(interface).await.context("the tunnel cannot be stopped"),
        }
    }

    async fn configure(
        &self,
        interface: &str,
        backend: Backend,
        change: &DeviceChange,
        identity: &Identity,
    ) -> anyhow::Result<()> {
        match backend {
            Backend::Kernel => Ok(self.wireguard.configure(interface, change, identity)?),
            Backend::Userspace => Ok(self.userspace.configure(interface, change, identity).await?),
        }
    }

    /// Kills the process behind an interface's socket, unless somebody else looks after it; returns its pid.
    pub fn kill_tunnel(&self, interface: &str) -> anyhow::Result<Option<i32>> {
        Ok(self.userspace.kill(interface)?)
    }
}
