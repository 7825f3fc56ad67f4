//! Where nodes publish and watch announcements.

pub mod dir;
pub mod kubernetes;
mod manifest;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use warren_api::status::RegistryStatus;
use warren_core::Record;

use crate::args;
use crate::happening::Happening;
use dir::DirRegistry;
use kubernetes::KubernetesRegistry;

/// The registry that the operator chose.
pub enum Registry {
    /// A directory of Node manifests.
    Dir(DirRegistry),
    /// A Kubernetes cluster.
    Kubernetes(KubernetesRegistry),
}

impl Registry {
    /// Opens it, seen from the node `node`; `changed` hears of changes from now on.
    pub async fn open(choice: args::Registry, node: String, changed: &Arc<Notify>) -> anyhow::Result<Self> {
        Ok(match choice {
            args::Registry::Dir(directory) => {
                let (notify, watched) = (changed.clone(), directory.clone());
                tokio::spawn(async move { dir::watch(watched, &notify).await });
                Self::Dir(DirRegistry::new(directory, node))
            }
            args::Registry::Kubernetes(kubeconfig) => {
                let changed = changed.clone();
                let opened =
                    KubernetesRegistry::open(kubeconfig.as_deref(), node, changed, kubernetes::SILENCE);
                Self::Kubernetes(opened.await?)
            }
        })
    }

    /// All entries. An error is about the registry as a whole.
    pub fn read(&mut self) -> anyhow::Result<Vec<Record>> {
        match self {
            Self::Dir(registry) => registry.read(),
            Self::Kubernetes(registry) => registry.read(),
        }
    }

    /// What the last successful look found.
    pub fn records(&self) -> Vec<Record> {
        match self {
            Self::Dir(registry) => registry.records(),
            Self::Kubernetes(registry) => registry.read().unwrap_or_default(),
        }
    }

    /// Has these annotations stand on the own Node, and no others of those that Warren publishes.
    pub fn publish(&self, annotations: &[(&str, String)]) -> anyhow::Result<()> {
        match self {
            Self::Dir(registry) => {
                if registry.publish(annotations)? {
                    let what =
                        if annotations.is_empty() { "the announcement is taken back" } else { "announced" };
                    tracing::info!("{what}");
                }
                Ok(())
            }
            Self::Kubernetes(registry) => {
                registry.publish(annotations);
                Ok(())
            }
        }
    }

    /// Says whether pods may run on this node, as far as Warren is concerned.
    pub fn ready(&self, ready: bool) {
        if let Self::Kubernetes(registry) = self {
            registry.ready(ready);
        }
    }

    /// Tells operators what happened, where there is somebody to tell.
    pub fn tell(&self, happening: Happening) {
        if let Self::Kubernetes(registry) = self {
            registry.tell(happening);
        }
    }

    /// The API server's address, where the configuration gives one.
    pub fn server(&self) -> Option<IpAddr> {
        match self {
            Self::Dir(_) => None,
            Self::Kubernetes(registry) => registry.server(),
        }
    }

    /// How it stands with the registry, where it is a server.
    pub fn status(&self) -> Option<RegistryStatus> {
        match self {
            Self::Dir(_) => None,
            Self::Kubernetes(registry) => Some(registry.status()),
        }
    }
}
