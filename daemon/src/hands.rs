//! All adapters that read and change this node, behind one pair of verbs: look and apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::future::join_all;
use warren_api::status::GuardCounters;
use warren_api::{Backend, PublicKey};
use warren_core::{
    Action, Desired, DeviceChange, Guard, Numbers, Observed, ObservedDevice, ObservedLink, ObservedTunnel,
    Plan, RouteKind, Standing, Tunnel,
};
use warren_tunnel::uapi;

use crate::before::Before;
use crate::guard::{self, Found};
use crate::kernel::{Kernel, View, spread};
use crate::keystore::Identity;
use crate::tunnel::{Owner, Userspace};
use crate::wireguard::Wireguard;

/// The adapters.
pub struct Hands {
    kernel: Kernel,
    wireguard: Wireguard,
    userspace: Userspace,
    before: Before,
    numbers: Numbers,
}

/// What to say where a setting of the node's own cannot be noted.
const UNNOTED: &str = "what the node's settings were cannot be noted in --state-dir, so they may stay as they are when Warren goes";

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
    /// Links that Warren made loose, with what their reverse-path filters were before.
    loosened: anyhow::Result<BTreeMap<u32, u8>>,
    /// Why it is not known which tunnels there are in userspace, if it is not.
    unlisted: Option<anyhow::Error>,
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
        self.unlisted.iter().for_each(&mut fail);
        let interfaces: BTreeSet<&Arc<str>> = self.view.links.keys().chain(self.devices.keys()).collect();
        let mut tunnels = BTreeMap::new();
        for interface in interfaces {
            let link = self.view.links.get(interface).cloned();
            let wanted = desired.tunnels.get(interface);
            let device = match self.devices.get(interface) {
                Some(Ok(device)) => Some(device.clone()),
                Some(Err(error)) => {
                    fail(error);
                    wanted.map(ObservedDevice::from)
                }
                // Nobody can be asked whose it is; who has the tunnel's addresses got them here.
                None if self.unlisted.is_some() => {
                    let is_tunnel = |wanted: &&Tunnel| {
                        link.as_ref().is_some_and(|link| {
                            link.backend == Backend::Userspace
                                && link.addresses.is_superset(&wanted.addresses)
                        })
                    };
                    wanted.filter(is_tunnel).map(ObservedDevice::from)
                }
                None => None,
            };
            tunnels.insert(interface.clone(), ObservedTunnel { link, device });
        }
        let loosened = match &self.loosened {
            Ok(loosened) => loosened.clone(),
            Err(error) => {
                fail(error);
                BTreeMap::new()
            }
        };
        let (routes, rules) = (self.view.routes.clone(), self.view.rules.clone());
        Observed { guard, guard_table, tunnels, strict: self.view.strict.clone(), loosened, routes, rules }
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

    /// Whether a tunnel is where peers will look for it: it answers, with its key and on its port.
    pub fn is_up(&self, interface: &str, desired: &Desired) -> bool {
        let (Some(wanted), Some(Ok(device))) = (desired.tunnels.get(interface), self.devices.get(interface))
        else {
            return false;
        };
        (device.public_key, device.listen_port) == (Some(wanted.public_key), wanted.listen_port)
    }

    /// The guard's counters.
    pub fn counters(&self) -> GuardCounters {
        self.found.as_ref().map(|found| found.counters).unwrap_or_default()
    }
}

/// What came of actions.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What went wrong.
    pub errors: Vec<anyhow::Error>,
    /// The tunnels that could not be started.
    pub missing: Vec<Arc<str>>,
}

impl Hands {
    /// Adapters for the network namespace of the current thread; `program` starts tunnels in userspace, unless
    /// somebody else does.
    pub fn new(program: Option<PathBuf>, state_dir: &Path, numbers: Numbers) -> anyhow::Result<Self> {
        let (kernel, wireguard) = (Kernel::open(numbers)?, Wireguard::open()?);
        let before = Before::open(state_dir).context("it cannot be told what is noted of this node")?;
        Ok(Self { kernel, wireguard, userspace: Userspace::new(program), before, numbers })
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
        // The kernel last: while it answers, nothing else here runs but other threads and processes.
        let (found, userspace, view) =
            tokio::join!(biased; guard::find(&self.numbers), self.userspace.observe(), self.kernel.view());
        let view = view?;
        let (userspace, unlisted) = match userspace {
            Ok(userspace) => (userspace, None),
            Err(error) => {
                let what = format!("the tunnels' sockets in {} cannot be listed", uapi::SOCKET_DIR);
                (BTreeMap::new(), Some(anyhow::Error::from(error).context(what)))
            }
        };
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
        let loosened = self.before.filters(&view.loose).context(UNNOTED);
        let (found, numbers) = (found.map_err(Into::into), self.numbers);
        let mut seen = Seen { view, found, devices, loosened, unlisted, numbers };
        self.tell_strangers(&mut seen).await;
        Ok(seen)
    }

    /// Tells TUNs of others from tunnels, which look the same but for who serves them.
    async fn tell_strangers(&self, seen: &mut Seen) {
        if seen.unlisted.is_some() {
            return;
        }
        let unserved = |(interface, link): &(&Arc<str>, &ObservedLink)| {
            link.backend == Backend::Userspace && !seen.devices.contains_key(*interface)
        };
        let unserved: Vec<Arc<str>> =
            seen.view.links.iter().filter(unserved).map(|(interface, _)| interface.clone()).collect();
        let owners = join_all(unserved.iter().map(|interface| self.userspace.owner(interface))).await;
        for (interface, owner) in unserved.into_iter().zip(owners) {
            match owner {
                Owner::Tunnel(device) => drop(seen.devices.insert(interface, device.map_err(Into::into))),
                // What is left of it is taken for what it is, half a tunnel.
                Owner::Nobody => {}
                Owner::Stranger => {
                    seen.view.links.remove(&interface);
                    seen.view.foreign.insert(interface);
                }
            }
        }
    }

    /// Has nobody serve in userspace what is not wanted, as where its name turned out to be somebody else's: whoever
    /// tries in vain is taken for dead. What is served is stopped by an action of its own.
    pub fn forget(&self, plan: &Plan, seen: &Seen) -> anyhow::Result<()> {
        if seen.unlisted.is_some() {
            return Ok(());
        }
        let tunnels = &plan.desired.tunnels;
        let is_wanted = |interface: &str| match tunnels.get(interface) {
            Some(tunnel) => tunnel.backend == Backend::Userspace,
            None => plan.hold && !seen.view.foreign.contains(interface),
        };
        self.userspace.forget(is_wanted).context("a tunnel that is not wanted cannot be taken back")
    }

    /// Does what can be done together ([`Action::runs`]).
    pub async fn apply_run(
        &self,
        run: &[Action],
        identity: Option<&Identity>,
        counters: GuardCounters,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        match run {
            [Action::AddRoute(_) | Action::RemoveRoute(_), ..] => {
                outcome.errors.extend(self.kernel.apply_routes(run).into_iter().map(anyhow::Error::from));
            }
            [Action::StartTunnel { .. }, ..] => {
                // Side by side: somebody else who does not come is waited for once.
                let starts = run.iter().map(|action| self.apply(action, identity, counters));
                for (action, result) in run.iter().zip(join_all(starts).await) {
                    if let Err(error) = result {
                        outcome.errors.push(error);
                        outcome.missing.extend(action.interfaces().iter().cloned());
                    }
                }
            }
            run => {
                for action in run {
                    outcome.errors.extend(self.apply(action, identity, counters).await.err());
                }
            }
        }
        outcome
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
            Action::Loosen { link, was } => {
                // Without a note, too: packets matter more than what is to be when Warren goes.
                let noted = self.before.note_filter(*link, *was);
                self.kernel.apply(action)?;
                noted.context(UNNOTED)?;
            }
            Action::SetLink { .. }
            | Action::AddAddress { .. }
            | Action::RemoveAddress { .. }
            | Action::Restore { .. }
            | Action::AddRoute(_)
            | Action::RemoveRoute(_)
            | Action::AddRule(_)
            | Action::RemoveRule(_) => self.kernel.apply(action)?,
        }
        Ok(())
    }

    /// Has the kernel spread flows over lanes by their ports, unless somebody chose another way than its default.
    pub fn spread_by_ports(&self) -> anyhow::Result<()> {
        for family in spread::families_by_addresses()? {
            // In a container this fails, each time; nothing is to be written then.
            spread::set(&family, true)?;
            self.before.note_by_addresses(&family).context(UNNOTED)?;
        }
        self.spread_by_warren().map(drop)
    }

    /// Has it spread them as before Warren.
    pub fn spread_as_before(&self) -> anyhow::Result<()> {
        for family in self.spread_by_warren()? {
            spread::set(&family, false)?;
        }
        self.spread_by_warren().map(drop)
    }

    /// The families whose flows are spread by ports because Warren saw to it.
    fn spread_by_warren(&self) -> anyhow::Result<BTreeSet<String>> {
        self.before.by_addresses(&spread::families_by_ports()?).context(UNNOTED)
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
            Backend::Userspace => {
                self.userspace.stop(interface).await.context("the tunnel cannot be stopped")
            }
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
