//! The few fields of a Kubernetes Node that Warren reads (API `v1`, kind `Node`).
//!
//! Only these: what is not read cannot break us, and a Node with a hundred images in its status costs no memory.
//! For the same reason of annotations and labels only those that concern Warren are kept.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::annotations;

/// The label of nodes that run the API server. The kubelet cannot give it to its own Node (admission plugin
/// NodeRestriction), so it tells more than what a node says of itself.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

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
    /// The version of the object; empty where the registry has none.
    #[serde(rename = "resourceVersion", default)]
    pub resource_version: String,
    /// Warren's annotations: those that begin with `warren.internal/`.
    #[serde(default, deserialize_with = "ours")]
    pub annotations: BTreeMap<String, String>,
    /// The labels that tell the role of a node, and Warren's.
    #[serde(default, deserialize_with = "roles")]
    pub labels: BTreeMap<String, String>,
}

impl Metadata {
    /// Whether the node may have the API server's address.
    pub fn is_control_plane(&self) -> bool {
        CONTROL_PLANE.iter().any(|label| self.labels.contains_key(*label))
    }

    /// Whether an operator left the node's own programs out of `--encrypt-host`.
    pub fn is_host_left_out(&self) -> bool {
        self.labels.get(annotations::ENCRYPT_HOST).is_some_and(|value| value == "false")
    }
}

/// An object of which only the metadata is known, as a metadata-only watch gives it (`PartialObjectMetadata` of
/// `meta.k8s.io/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Partial {
    /// Its metadata.
    pub metadata: Metadata,
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
    /// What keeps pods off the node.
    #[serde(default)]
    pub taints: Vec<Taint>,
}

/// One taint of a Node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Taint {
    /// Its key.
    pub key: String,
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

fn ours<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    deserializer.deserialize_any(Beginning(&[annotations::PREFIX]))
}

fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    deserializer.deserialize_any(Beginning(&["node-role.kubernetes.io/", annotations::PREFIX]))
}

/// Keeps the entries of a map of texts whose names begin in one of these ways; the others cost no memory.
#[derive(Clone, Copy)]
struct Beginning(&'static [&'static str]);

impl<'de> Visitor<'de> for Beginning {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(name) = map.next_key_seed(Name(self))? {
            match name {
                Some(name) => drop(kept.insert(name, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(kept)
    }
}

/// A name, if it is one to keep.
struct Name(Beginning);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.0.iter().any(|prefix| name.starts_with(prefix)).then(|| name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_warren_is_kept() {
        let json = r#"{"metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "managedFields": [{"a": 1}],
            "annotations": {"x": "1", "warren.internal/epoch": "3", "warren.internalx": "4"},
            "labels": {"node-role.kubernetes.io/control-plane": "", "a": "b", "warren.internal/encrypt-host": "false"}}}"#;
        let Partial { metadata } = serde_json::from_str(json).unwrap();
        assert_eq!(metadata.annotations, [("warren.internal/epoch".to_owned(), "3".to_owned())].into());
        assert_eq!((metadata.resource_version.as_str(), metadata.labels.len()), ("7", 2));
        assert!(metadata.is_control_plane() && metadata.is_host_left_out());
        let bare: Partial =
            serde_json::from_str(r#"{"metadata": {"name": "a", "annotations": null}}"#).unwrap();
        assert!(bare.metadata.annotations.is_empty() && !bare.metadata.is_control_plane());
        assert!(serde_json::from_str::<Partial>(r#"{"metadata": {"name": "a", "annotations": 7}}"#).is_err());
    }
}
