//! What everybody else does to Nodes: kubelets, controllers, and whoever writes on them by hand.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::ApiServer;
use super::managed::{self, Manager};
use super::object::Node;
use super::patch::update_owners;
use super::spec::NodeSpec;
use super::store::Store;

/// Mutations. Each is one version and one event; those who watch hear of it at once.
impl ApiServer {
    /// Adds a Node.
    pub fn add_node(&self, spec: &NodeSpec) -> Result<()> {
        self.add_nodes(std::slice::from_ref(spec))
    }

    /// Adds many Nodes.
    pub fn add_nodes(&self, specs: &[NodeSpec]) -> Result<()> {
        for spec in specs {
            self.shared.write(|store| {
                ensure!(store.get(&spec.name).is_none(), "there is a Node {} already", spec.name);
                insert(store, spec.to_object())
            })?;
        }
        Ok(())
    }

    /// Sets annotations, or removes those that are `None`, as `kubectl annotate --overwrite` does: a server-side
    /// apply of the same keys will find that they are owned by `kubectl-annotate`.
    pub fn update_annotations(&self, name: &str, changes: &[(&str, Option<&str>)]) -> Result<()> {
        self.update(name, |object| {
            let annotations = &mut object["metadata"]["annotations"];
            for (key, value) in changes {
                match (value, annotations.as_object_mut()) {
                    (Some(value), _) => annotations[*key] = (*value).into(),
                    (None, Some(annotations)) => drop(annotations.remove(*key)),
                    (None, None) => {}
                }
            }
        })
    }

    /// Changes a Node in any way, as `kubectl edit` would.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.shared.write(|store| {
            let node = store.get(name).with_context(|| format!("there is no Node {name}"))?;
            let (before, heartbeat) = (node.to_object()?, node.heartbeat);
            let mut after = before.clone();
            change(&mut after);
            ensure!(after["metadata"]["name"] == name, "an update cannot rename Node {name}");
            let manager = Manager { name: "kubectl-annotate", operation: "Update" };
            update_owners(&before, &mut after, manager, Timestamp::now());
            if after != before {
                store.put(checked(after, store.next_version(), heartbeat)?);
            }
            Ok(())
        })
    }

    /// Puts an object in the place of the Node of its name, or adds it; nothing about it is filled in. For
    /// Nodes as no kubelet writes them.
    pub fn replace(&self, object: Value) -> Result<()> {
        self.shared.write(|store| {
            store.put(checked(object, store.next_version(), Timestamp::now())?);
            Ok(())
        })
    }

    /// Deletes a Node.
    pub fn delete_node(&self, name: &str) -> Result<()> {
        let deleted = self.shared.write(|store| store.delete(name));
        deleted.map(drop).with_context(|| format!("there is no Node {name}"))
    }

    /// Deletes a Node and registers it anew under another UID, as a reinstalled machine does: it comes with
    /// what it had, but without a single annotation.
    pub fn recreate_node(&self, name: &str, uid: &str) -> Result<()> {
        self.shared.write(|store| {
            let node = store.delete(name).with_context(|| format!("there is no Node {name}"))?;
            let mut object = node.to_object()?;
            ensure!(node.text.uid != uid, "Node {name} has the UID {uid} already");
            object["metadata"]["uid"] = uid.into();
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.retain(|key, _| {
                    !["annotations", "creationTimestamp", "managedFields"].contains(&&**key)
                });
            }
            insert(store, object)
        })
    }

    /// A kubelet writes its Node's status and says nothing new: a version and an event, though no metadata
    /// but times changes.
    pub fn touch_status(&self, name: &str) -> Result<()> {
        ensure!(self.shared.heartbeat(name), "there is no Node {name}");
        Ok(())
    }

    /// Each kubelet writes its status every `interval`, one after the other, from the server's own thread.
    /// `None` ends it.
    pub fn set_heartbeats(&self, interval: Option<Duration>) {
        self.shared.control.send_modify(|control| control.heartbeats = interval);
    }
}

/// A Node as the cluster's own managers leave it.
fn insert(store: &mut Store, mut object: Value) -> Result<()> {
    let now = Timestamp::now();
    managed::of_a_cluster(&mut object, now);
    store.put(checked(object, store.next_version(), now)?);
    Ok(())
}

/// What no API server would hold, no test should believe to have tested.
fn checked(object: Value, version: u64, heartbeat: Timestamp) -> Result<Node> {
    for map in ["annotations", "labels"] {
        let value = &object["metadata"][map];
        let of_strings = value.as_object().is_some_and(|entries| entries.values().all(Value::is_string));
        if !value.is_null() && !of_strings {
            bail!("metadata.{map} can only be a map of strings, not {value}");
        }
    }
    Node::new(object, version, heartbeat)
}
