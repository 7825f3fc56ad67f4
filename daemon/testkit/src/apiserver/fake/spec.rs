//! What a test says of a Node, made into a Node of realistic size.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A Node to be created. [`NodeSpec::numbered`] fills in everything.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.podCIDRs`, as written, be it nonsense; the first is also `spec.podCIDR`.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of type InternalIP, as written, be it nonsense.
    pub addresses: Vec<String>,
    /// Labels beside those that every kubelet sets.
    pub labels: BTreeMap<String, String>,
    /// Annotations beside those that every kubelet sets.
    pub annotations: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// How many images `status.images` lists, each of some 230 bytes. A kubelet lists up to 50.
    pub images: usize,
}

/// One of `spec.taints`.
#[derive(Debug, Clone)]
pub struct Taint {
    /// For instance `warren.internal/not-ready`.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl NodeSpec {
    /// A Node of that name, with a UID of its own and nothing in which nodes differ from each other.
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            uid: uid_of(&name),
            name,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            taints: Vec::new(),
            images: 30,
        }
    }

    /// `node-00007` with pod CIDRs 10.0.7.0/24 and fd00:10:7::/64 and address 172.16.0.7: 5,000 of these
    /// are a cluster without contradictions (up to 65,535 there are).
    pub fn numbered(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            pod_cidrs: vec![format!("10.{high}.{low}.0/24"), format!("fd00:10:{number:x}::/64")],
            addresses: vec![format!("172.16.{high}.{low}")],
            ..Self::named(format!("node-{number:05}"))
        }
    }

    /// The object, as one sees it after controllers and kubelet have had their say.
    pub(super) fn to_object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "uid": self.uid,
                "labels": self.all_labels(),
                "annotations": self.all_annotations(),
            },
            "spec": self.spec(),
            "status": status(&self.name, &self.addresses, self.images),
        })
    }

    fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from(
            [
                ("beta.kubernetes.io/arch", "amd64"),
                ("beta.kubernetes.io/instance-type", "m6i.2xlarge"),
                ("beta.kubernetes.io/os", "linux"),
                ("failure-domain.beta.kubernetes.io/region", "eu-central-1"),
                ("failure-domain.beta.kubernetes.io/zone", "eu-central-1b"),
                ("kubernetes.io/arch", "amd64"),
                ("kubernetes.io/hostname", &self.name),
                ("kubernetes.io/os", "linux"),
                ("node.kubernetes.io/instance-type", "m6i.2xlarge"),
                ("topology.kubernetes.io/region", "eu-central-1"),
                ("topology.kubernetes.io/zone", "eu-central-1b"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        labels.extend(self.labels.clone());
        labels
    }

    fn all_annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::from([
            ("node.alpha.kubernetes.io/ttl".to_owned(), "0".to_owned()),
            ("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned()),
        ]);
        annotations.extend(self.annotations.clone());
        annotations
    }

    fn spec(&self) -> Value {
        let mut spec = Map::new();
        if let Some(first) = self.pod_cidrs.first() {
            spec.insert("podCIDR".to_owned(), json!(first));
            spec.insert("podCIDRs".to_owned(), json!(self.pod_cidrs));
        }
        spec.insert("providerID".to_owned(), json!(format!("aws:///eu-central-1b/i-{}", self.name)));
        if !self.taints.is_empty() {
            let taints: Vec<Value> = self.taints.iter().map(Taint::to_object).collect();
            spec.insert("taints".to_owned(), taints.into());
        }
        spec.into()
    }
}

impl Taint {
    fn to_object(&self) -> Value {
        match self.value.as_str() {
            "" => json!({ "key": self.key, "effect": self.effect }),
            value => json!({ "key": self.key, "value": value, "effect": self.effect }),
        }
    }
}

/// A UID that differs where names differ: no randomness, so that a run can be repeated.
fn uid_of(name: &str) -> String {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:08x}-0000-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff)
}

fn status(name: &str, addresses: &[String], images: usize) -> Value {
    let mut all: Vec<Value> =
        addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address })).collect();
    all.push(json!({ "type": "Hostname", "address": name }));
    let resources = json!({
        "cpu": "8", "ephemeral-storage": "101430960Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "32309424Ki", "pods": "110",
    });
    json!({
        "addresses": all,
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions(),
        "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
        "images": (0..images).map(image).collect::<Vec<_>>(),
        "nodeInfo": {
            "architecture": "amd64", "bootID": uid_of(&format!("boot of {name}")),
            "containerRuntimeVersion": "containerd://2.1.4", "kernelVersion": "6.12.48+deb13-amd64",
            "kubeProxyVersion": "", "kubeletVersion": "v1.34.1", "machineID": uid_of(&format!("machine {name}")),
            "operatingSystem": "linux", "osImage": "Debian GNU/Linux 13 (trixie)",
            "systemUUID": uid_of(&format!("system {name}")),
        },
    })
}

fn conditions() -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    json!([
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ])
}

fn image(number: usize) -> Value {
    let repository = format!("registry.example.org/platform/component-{number:02}");
    let digest = "7d1f2c0b9a8e6f5d4c3b2a190817263544f5e6d7c8b9a0f1e2d3c4b5a6978869";
    json!({
        "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.{number}.0")],
        "sizeBytes": 31_457_280 + number,
    })
}
