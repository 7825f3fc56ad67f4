//! The few fields of a Kubernetes Node that Warren reads (API `v1`, kind `Node`).
//!
//! Only these: what is not read cannot break us, and a Node with a hundred images in its status costs no memory.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A Node, reduced to what Warren reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Name, UID and annotations.
    pub metadata: Metadata,
    /// The pod CIDRs that Kubernetes gave the node.
    #[serde(default)]
    pub spec: Spec,
    /// The addresses of the node.
    #[serde(default)]
    pub status: Status,
}

/// `metadata` of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Metadata {
    /// The name, unique in the registry.
    pub name: String,
    /// The UID; empty where the registry has none.
    #[serde(default)]
    pub uid: String,
    /// All annotations; Warren's begin with `warren.internal/`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// `spec` of a Node. The CIDRs stay text here: whether they are sound is judged where it can be said of
/// which node they are not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Spec {
    /// The first pod CIDR; the only one that very old objects carry.
    #[serde(rename = "podCIDR", default)]
    pub pod_cidr: Option<String>,
    /// All pod CIDRs, one for each address family.
    #[serde(rename = "podCIDRs", default)]
    pub pod_cidrs: Vec<String>,
}

/// `status` of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Status {
    /// Addresses of all types.
    #[serde(default)]
    pub addresses: Vec<Address>,
}

/// One address of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The address as text: host names stand here, too.
    pub address: String,
}

impl Node {
    /// The pod CIDRs as text, whichever field carries them.
    pub fn pod_cidrs(&self) -> Vec<&str> {
        match (&self.spec.pod_cidrs[..], &self.spec.pod_cidr) {
            ([], Some(one)) => vec![one],
            (all, _) => all.iter().map(String::as_str).collect(),
        }
    }

    /// The addresses of type `InternalIP`, as text.
    pub fn internal_ips(&self) -> impl Iterator<Item = &str> {
        self.status.addresses.iter().filter(|a| a.kind == "InternalIP").map(|a| a.address.as_str())
    }
}
