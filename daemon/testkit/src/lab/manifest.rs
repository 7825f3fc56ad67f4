//! Kubernetes Node manifests, as `kubectl get node NAME -o yaml` prints them: what a `dir:` registry holds.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ipnet::IpNet;

/// The fields of a Node that differ from node to node.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.annotations`, beside those of other components.
    pub annotations: Vec<(String, String)>,
    /// `metadata.labels`, beside those of every Node.
    pub labels: Vec<(String, String)>,
    /// `spec.podCIDRs`; `spec.podCIDR` is the first.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
}

impl Manifest {
    /// A Node without annotations of Warren, with a UID made from its name.
    pub fn new(name: &str, pod_cidrs: Vec<IpNet>, internal_ips: Vec<IpAddr>) -> Self {
        // Any stable and distinct value will do: FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff_ffff);
        Self {
            name: name.to_owned(),
            uid,
            annotations: Vec::new(),
            labels: Vec::new(),
            pod_cidrs,
            internal_ips,
        }
    }

    /// The YAML document.
    pub fn to_yaml(&self) -> String {
        let Self { name, uid, annotations, labels, pod_cidrs, internal_ips } = self;
        // JSON strings are YAML strings, whatever they contain.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let list = |items: Vec<String>, indent: &str| {
            items.iter().fold(String::new(), |mut text, item| {
                let _ = write!(text, "\n{indent}- {item}");
                text
            })
        };
        let map = |pairs: &[(String, String)]| -> String {
            pairs.iter().map(|(key, value)| format!("    {}: {}\n", quoted(key), quoted(value))).collect()
        };
        let (annotations, labels) = (map(annotations), map(labels));
        let first_cidr = pod_cidrs.first().map(|cidr| format!("  podCIDR: {cidr}\n")).unwrap_or_default();
        let pod_cidrs = list(pod_cidrs.iter().map(|cidr| quoted(&cidr.to_string())).collect(), "  ");
        let addresses = list(
            internal_ips
                .iter()
                .map(|ip| format!("address: {}\n    type: InternalIP", quoted(&ip.to_string())))
                .chain([format!("address: {}\n    type: Hostname", quoted(name))])
                .collect(),
            "  ",
        );
        format!(
            r#"apiVersion: v1
kind: Node
metadata:
  annotations:
    kubeadm.alpha.kubernetes.io/cri-socket: unix:///var/run/containerd/containerd.sock
    node.alpha.kubernetes.io/ttl: "0"
    volumes.kubernetes.io/controller-managed-attach-detach: "true"
{annotations}  creationTimestamp: "2025-01-01T00:00:00Z"
  labels:
    beta.kubernetes.io/arch: amd64
    kubernetes.io/arch: amd64
    kubernetes.io/hostname: {name}
    kubernetes.io/os: linux
{labels}  name: {name}
  resourceVersion: "1000"
  uid: {uid}
spec:
{first_cidr}  podCIDRs:{pod_cidrs}
status:
  addresses:{addresses}
  allocatable:
    cpu: "2"
    memory: 3912452Ki
    pods: "110"
  capacity:
    cpu: "2"
    memory: 4014852Ki
    pods: "110"
  conditions:
  - lastHeartbeatTime: "2025-01-01T00:05:00Z"
    lastTransitionTime: "2025-01-01T00:00:30Z"
    message: kubelet is posting ready status
    reason: KubeletReady
    status: "True"
    type: Ready
  daemonEndpoints:
    kubeletEndpoint:
      Port: 10250
  nodeInfo:
    architecture: amd64
    containerRuntimeVersion: containerd://1.7.24
    kernelVersion: 6.1.0-30-amd64
    kubeletVersion: v1.32.0
    operatingSystem: linux
    osImage: Debian GNU/Linux 12 (bookworm)
"#
        )
    }

    /// Where this Node stands in the registry `directory`.
    pub fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.yaml", self.name))
    }

    /// Puts the manifest into the registry `directory`, atomically.
    pub fn write(&self, directory: &Path) -> Result<()> {
        write_atomically(&self.path(directory), self.to_yaml())
    }
}

/// Writes a file so that a reader sees the old text or the new one. The temporary name begins with a dot and
/// ends in no `.yaml`: watchers of a directory of manifests are to pass over it.
pub fn write_atomically(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let name = path.file_name().context("a path without file name")?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("writing {}", path.display()))
}
