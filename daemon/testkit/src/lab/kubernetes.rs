//! A lab whose registry is a Kubernetes API server: its Nodes, and the rights of the daemons on them.
//!
//! Each object is made as a cluster has it made: Nodes as kubelets register them, with the pod CIDRs of the
//! controller manager; ServiceAccounts and roles from `manifests/base`; for each node a Pod of the DaemonSet,
//! and a kubeconfig with a token bound to that Pod. No controller runs, so nothing changes but what a scenario
//! changes, and what the daemons do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Lab, Node, Plan, plug, shipped, write_atomically};
use crate::apiserver::real::{ApiServer, Patch};
use crate::netns::Netns;

/// Warren's namespace.
pub const NAMESPACE: &str = "warren-system";
/// The ServiceAccount of the daemons.
pub const DAEMON: &str = "warrend";
/// The taint that nodes start with, until their traffic is safe.
pub const STARTUP_TAINT: &str = "warren.internal/not-ready";

impl Lab {
    /// The API server of a lab that has one.
    ///
    /// # Panics
    /// When the plan's registry is a directory.
    pub fn api(&self) -> &ApiServer {
        self.api.as_ref().expect("this lab's plan has no API server")
    }

    /// Where a Node stands on the API server: `/api/v1/nodes/node-1`.
    pub fn node_path(&self, number: usize) -> String {
        node_path(&self.node(number).name)
    }

    /// The Node as the API server has it.
    pub fn node_object(&self, number: usize) -> Result<Value> {
        self.api().client().get(&self.node_path(number))?.ok()
    }

    /// Registers a Node, as its kubelet does, with `spec` (`podCIDRs`, `taints`, …); see [`Lab::spec`].
    pub fn register(&self, number: usize, spec: Value) -> Result<()> {
        register(self.api(), self.node(number), spec)
    }

    /// The `spec` that a Node has when the lab begins.
    pub fn spec(&self, number: usize) -> Value {
        spec(self.node(number))
    }

    /// Deletes a Node object.
    pub fn unregister(&self, number: usize) -> Result<()> {
        self.api().client().delete(&self.node_path(number))?.ok().map(drop)
    }

    /// The token of the daemon on a node.
    pub fn daemon_token(&self, number: usize) -> Result<String> {
        let path = self.node(number).token_path();
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// The file of a kubeconfig with all rights.
    pub fn admin_kubeconfig_path(&self) -> PathBuf {
        admin_kubeconfig_path(&self.directory)
    }

    /// A token of one of Warren's ServiceAccounts that is bound to no Pod: an operator's or auditor's.
    pub fn token_of(&self, service_account: &str) -> Result<String> {
        self.api().service_account_token(NAMESPACE, service_account, None)
    }
}

impl Node {
    /// The file of this node's kubeconfig.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.directory.join(format!("{}.kubeconfig", self.name))
    }

    /// The file of the token of this node's daemon.
    pub fn token_path(&self) -> PathBuf {
        self.directory.join(format!("{}.token", self.name))
    }
}

/// Starts the API server on a machine of its own and makes all that stands on it before Warren runs.
pub(super) fn start(
    plan: &Plan,
    prefix: &str,
    underlay: &Netns,
    nodes: &[Node],
    directory: &Path,
) -> Result<ApiServer> {
    let machine = Netns::new(&format!("{prefix}control-plane"))?;
    let ips = plan.control_plane_ips();
    plug(&machine, underlay, "control-plane", &ips, plan)?;
    let api = ApiServer::start(machine, ips[0], &directory.join("control-plane"))?;
    write_atomically(&admin_kubeconfig_path(directory), api.admin_kubeconfig())?;
    for (path, object) in shipped::objects()? {
        api.client().create(&path, &object)?.ok()?;
    }
    for node in nodes {
        register(&api, node, spec(node))?;
        grant(&api, node)?;
    }
    Ok(api)
}

fn admin_kubeconfig_path(directory: &Path) -> PathBuf {
    directory.join("admin.kubeconfig")
}

fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

fn spec(node: &Node) -> Value {
    json!({
        "podCIDR": node.pod_cidrs[0],
        "podCIDRs": node.pod_cidrs,
        "taints": [{"key": STARTUP_TAINT, "effect": "NoSchedule"}],
    })
}

fn register(api: &ApiServer, node: &Node, spec: Value) -> Result<()> {
    let name = &node.name;
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
    let metadata = json!({"name": name, "labels": labels});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
    api.client().create("/api/v1/nodes", &object)?.ok()?;

    let ips = node.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
    let addresses: Vec<_> = ips.chain([json!({"type": "Hostname", "address": name})]).collect();
    let status = json!({"status": {"addresses": addresses}});
    let path = format!("{}/status", node_path(name));
    api.client().patch(&path, Patch::Merge, &status)?.ok()?;
    Ok(())
}

/// Makes the Pod of the DaemonSet, and the kubeconfig that its container would have.
fn grant(api: &ApiServer, node: &Node) -> Result<()> {
    let name = format!("warren-{}", node.name);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "warren"}},
        "spec": {
            "nodeName": node.name,
            "serviceAccountName": DAEMON,
            // The token comes by TokenRequest; without a controller there is no Secret of the ServiceAccount.
            "automountServiceAccountToken": false,
            "hostNetwork": true,
            "containers": [{"name": "warrend", "image": "warren"}],
        },
    });
    let pod = api.client().create(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &pod)?.ok()?;
    let token = api.service_account_token(NAMESPACE, DAEMON, Some(&pod))?;
    write_atomically(&node.token_path(), token)?;
    write_atomically(&node.kubeconfig_path(), api.kubeconfig_with_token_file(&node.token_path()))
}
