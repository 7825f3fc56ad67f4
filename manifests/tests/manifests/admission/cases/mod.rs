//! Who tries what, and whether it is allowed.

mod annotations;
mod daemons;
mod operators;

use serde_json::{Value, json};

use super::request::Request;

/// A request and its verdict.
pub struct Case {
    pub name: String,
    pub request: Request,
    pub expected: Expected,
}

/// A verdict.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    Allowed,
    /// Refused with a message that contains this.
    Refused(&'static str),
}

pub use Expected::{Allowed, Refused};

/// By the policy of annotations.
pub const NOT_THEIRS: Expected = Refused("only a node's own daemon writes");

/// All cases.
pub fn cases() -> Vec<Case> {
    [daemons::cases(), annotations::cases(), operators::cases()].into_iter().flatten().collect()
}

/// A Node as a kubelet, controllers and a daemon made it.
fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "n1",
            "uid": "1f5d3c52-6f0e-4a3b-9a53-0d6c1c5a8a10",
            "resourceVersion": "4711",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux" },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "warren.internal/announcement": "{\"version\":1}",
                "warren.internal/public-key": "AAAA",
                "warren.internal/epoch": "0",
                "warren.internal/backend": "userspace",
                "warren.internal/rotate": "1",
            },
            "finalizers": ["example.com/keep"],
            "generation": 1,
            "managedFields": [{ "manager": "kubelet", "operation": "Update" }],
        },
        "spec": {
            "podCIDR": "10.244.1.0/24",
            "podCIDRs": ["10.244.1.0/24"],
            "providerID": "cloud://n1",
            "taints": [
                { "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" },
                { "key": "warren.internal/not-ready", "effect": "NoSchedule" },
                { "key": "example.com/gpu", "value": "a", "effect": "NoExecute" },
            ],
        },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }],
            "capacity": { "cpu": "4", "memory": "16Gi" },
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z" }],
            "nodeInfo": { "kubeletVersion": "v1.36.0" },
        },
    })
}

/// A Node that nobody has written more on than he must.
fn bare_node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "n1", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {},
        "status": { "conditions": [] },
    })
}

fn annotate(key: &str, value: &str) -> impl Fn(&mut Value) {
    let pair = (key.to_owned(), json!(value));
    move |node| node["metadata"]["annotations"][&pair.0] = pair.1.clone()
}

fn unannotate(key: &str) -> impl Fn(&mut Value) {
    let key = key.to_owned();
    move |node| drop(node["metadata"]["annotations"].as_object_mut().unwrap().remove(&key))
}

/// Sets what stands at a JSON pointer; `Value::Null` removes it.
fn set(pointer: &'static str, value: Value) -> impl Fn(&mut Value) {
    move |node| {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = node.pointer_mut(parent).unwrap();
        if value.is_null() {
            drop(parent.as_object_mut().unwrap().remove(name));
        } else {
            parent[name] = value.clone();
        }
    }
}

fn case(name: &str, request: Request, expected: Expected) -> Case {
    Case { name: name.to_owned(), request, expected }
}

type Change = Box<dyn Fn(&mut Value)>;

/// What the API server itself keeps about a Node may differ, whoever writes.
fn bookkeeping(who: &str, change: impl Fn() -> Request) -> Vec<Case> {
    let without = |object: fn(&mut Request) -> &mut Value, pointer: &'static str| {
        let mut request = change();
        set(pointer, Value::Null)(object(&mut request));
        case(&format!("{who} writes, {pointer} differs"), request, Allowed)
    };
    let fields = [
        "/metadata/generation",
        "/metadata/managedFields",
        "/metadata/resourceVersion",
        "/apiVersion",
        "/kind",
    ];
    let new = fields.map(|field| without(|request| &mut request.object, field));
    let old = fields.map(|field| without(|request| &mut request.old_object, field));
    new.into_iter().chain(old).collect()
}
