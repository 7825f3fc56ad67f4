//! All adapters that read and change this node, behind one pair of verbs: look and apply.

use std::path::PathBuf;

use anyhow::Context as _;
use warren_api::names;
use warren_api::status::GuardCounters;
use warren_core::{Action, Desired, Guard, Observed, ObservedDevice, RouteKind};

use crate::guard::{self, Found};
use crate::kernel::{Kernel, View};
use crate::keystore::Identity;
use crate::tunnel::Userspace;

/// The adapters.
pub struct Hands {
    kernel: Kernel,
    tunnel: Userspace,
}

/// All that was read back at one moment. The guard and the tunnel may not be readable; the rest of the node is
/// kept in order all the same.
#[derive(Debug)]
pub struct Seen {
    /// From the kernel's routing.
    pub view: View,
    /// From nftables.
    pub found: anyhow::Result<Found>,
    /// From the tunnel.
    pub device: anyhow::Result<Option<ObservedDevice>>,
    /// Whether the tunnel's process is somebody else's.
    pub external: bool,
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
        let device = match &self.device {
            Ok(device) => device.clone(),
            Err(error) => {
                fail(error);
                desired.tunnel.as_ref().map(ObservedDevice::from)
            }
        };
        // A tunnel that somebody else would start again at once is left alone where none is wanted: without
        // routes that lead there it carries nothing.
        let ours = !self.external || desired.tunnel.is_some();
        Observed {
            guard,
            guard_table,
            link: self.view.link.clone().filter(|_| ours),
            device: device.filter(|_| ours),
            routes: self.view.routes.clone(),
            rules: self.view.rules.clone(),
        }
    }

    /// What is guarded and must not be forgotten: what the guard's sets hold, also where its rules are damaged,
    /// and the `unreachable` routes, which tell the same where the guard is gone; and what `before` was.
    pub fn standing(&self, before: &Guard) -> Guard {
        let mut standing = before.clone();
        let found = self.found.as_ref().map(|found| found.sets.clone()).unwrap_or_default();
        for (before, mut found) in [
            (&mut standing.remote_pods, found.remote_pods),
            (&mut standing.remote_nodes, found.remote_nodes),
            (&mut standing.local_pods, found.local_pods),
        ] {
            // Merges two sorted sets, where `extend` would look each network up.
            before.append(&mut found);
        }
        let blocks = self
            .view
            .routes
            .iter()
            .filter(|route| route.kind == RouteKind::Unreachable && route.table == names::PODS_TABLE);
        standing.remote_pods.append(&mut blocks.map(|route| route.destination).collect());
        standing
    }

    /// The guard's counters.
    pub fn counters(&self) -> GuardCounters {
        self.found.as_ref().map(|found| found.counters).unwrap_or_default()
    }
}

impl Hands {
    /// Adapters for the network namespace of the current thread; `program` starts the tunnel of `interface`, unless
    /// somebody else does.
    pub fn new(program: Option<PathBuf>, interface: String) -> anyhow::Result<Self> {
        Ok(Self { kernel: Kernel::open()?, tunnel: Userspace::new(program, interface) })
    }

    /// Reads everything back. Without the kernel's own word there is nothing to go by.
    pub async fn look(&self) -> anyhow::Result<Seen> {
        let (view, found, device) =
            tokio::join!(self.kernel.view(self.tunnel.interface()), guard::find(), self.tunnel.observe());
        Ok(Seen {
            view: view?,
            found: found.map_err(Into::into),
            device: device.map_err(Into::into),
            external: self.tunnel.is_external(),
        })
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
                guard::apply(action, counters).await?;
            }
            Action::StartTunnel { .. } => self.tunnel.start().await?,
            Action::ConfigureDevice(change) => {
                let identity = identity.context("a device is configured only by the daemon")?;
                self.tunnel.configure(change, identity).await?;
            }
            Action::StopTunnel => self.tunnel.stop().context("the tunnel's socket cannot be removed")?,
            Action::SetLink { .. }
            | Action::AddAddress(_)
            | Action::RemoveAddress(_)
            | Action::AddRoute(_)
            | Action::RemoveRoute(_)
            | Action::AddRule(_)
            | Action::RemoveRule(_) => self.kernel.apply(self.tunnel.interface(), action).await?,
        }
        Ok(())
    }

    /// Kills the process behind the tunnel's socket, unless somebody else looks after it; returns its pid.
    pub fn kill_tunnel(&self) -> anyhow::Result<Option<i32>> {
        Ok(self.tunnel.kill()?)
    }
}
