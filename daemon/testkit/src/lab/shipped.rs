//! What `manifests/base` holds of accounts and rights, as it is shipped: what the daemons of a lab may do is
//! what they may do in a cluster.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The manifests that `kubectl apply -k` installs. This crate never leaves the source tree.
const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/base");

/// The kinds that a lab needs, in an order in which each finds what it refers to, with the path of their
/// collection. (Workloads would only lie there: no controller runs them.)
const KINDS: &[(&str, &str)] = &[
    ("Namespace", "/api/v1/namespaces"),
    ("ServiceAccount", "/api/v1/namespaces/{namespace}/serviceaccounts"),
    ("ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    ("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
    ("Role", "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles"),
    ("RoleBinding", "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"),
];

/// (path of the collection, object) of each, in the order in which to create them.
pub(super) fn objects() -> Result<Vec<(String, Value)>> {
    let found = base()?;
    let mut objects = Vec::new();
    for (kind, path) in KINDS {
        for object in found.iter().filter(|object| object["kind"] == *kind) {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
            objects.push((path.replace("{namespace}", namespace), object.clone()));
        }
    }
    ensure!(!objects.is_empty(), "{BASE} holds no accounts and roles");
    Ok(objects)
}

/// A container of the DaemonSet.
pub(super) fn container(name: &str) -> Result<Value> {
    let daemonset = the("DaemonSet")?;
    let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
    let mut found = containers.filter(|container| container["name"] == name);
    found.next().cloned().with_context(|| format!("{BASE} has no container {name}"))
}

/// Each setting of the ConfigMap and its text.
pub(super) fn settings() -> Result<Vec<(String, String)>> {
    let settings = the("ConfigMap")?;
    let data = settings["data"].as_object().context("a ConfigMap without data")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(data.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

/// The only object of a kind.
fn the(kind: &str) -> Result<Value> {
    let found: Vec<_> = base()?.into_iter().filter(|object| object["kind"] == kind).collect();
    ensure!(found.len() == 1, "{BASE} has {} of the kind {kind}", found.len());
    found.into_iter().next().context("one is there")
}

/// All objects of the base. Its kustomization names files, and an image, and patches nothing.
fn base() -> Result<Vec<Value>> {
    let base = Path::new(BASE);
    let mut found = Vec::new();
    let kustomization = read(&base.join("kustomization.yaml"))?;
    let [kustomization] = &kustomization[..] else {
        anyhow::bail!("{BASE}/kustomization.yaml is not one document")
    };
    ensure!(kustomization.get("patches").is_none(), "{BASE} patches itself: build it with kustomize");
    let files = kustomization["resources"].as_array().context("the kustomization has no resources")?;
    for file in files.iter().filter_map(Value::as_str) {
        found.extend(read(&base.join(file))?);
    }
    Ok(found)
}

/// All documents of a file of YAML.
fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_norway::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).with_context(|| format!("in {}", path.display())))
        .collect()
}
