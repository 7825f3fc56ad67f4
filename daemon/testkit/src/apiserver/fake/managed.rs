//! `metadata.managedFields`: who owns which field, kept in the object itself, as Kubernetes does.
//!
//! A field is owned by managers; a manager is a name together with an operation: `Apply` for server-side apply,
//! `Update` for every other write. Whoever updates a field takes it from all others; whoever applies it shares
//! it with those who want the same value, and must force what others want differently.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use warren_api::annotations::PUBLISHED;

use super::object::rfc3339;

/// A field's path, for instance `["metadata", "annotations", "warren.internal/epoch"]`.
pub(super) type Path<'a> = [&'a str];

/// One of the managers of an object, but for its fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager<'a> {
    pub name: &'a str,
    /// `Apply` or `Update`.
    pub operation: &'a str,
}

impl Manager<'_> {
    fn is(self, entry: &Value) -> bool {
        entry["manager"] == self.name
            && entry["operation"] == self.operation
            && entry["subresource"].is_null()
    }
}

/// The entries of what a cluster's own managers write, for a Node that has none. An announcement that it
/// already bears was applied by a `warrend`.
pub(super) fn of_a_cluster(object: &mut Value, now: Timestamp) {
    let keys = |value: &Value, chosen: &dyn Fn(&str) -> bool| -> Map<String, Value> {
        let keys = value.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| chosen(key));
        let mut fields: Map<String, Value> = keys.map(|key| (format!("f:{key}"), json!({}))).collect();
        fields.insert(".".to_owned(), json!({}));
        fields
    };
    let is_ttl = |key: &str| key == "node.alpha.kubernetes.io/ttl";
    let is_published = |key: &str| PUBLISHED.contains(&key);
    let metadata = &object["metadata"];
    let of_kubelet = json!({
        "f:metadata": {
            "f:annotations": keys(&metadata["annotations"], &|key| !is_ttl(key) && !is_published(key)),
            "f:labels": keys(&metadata["labels"], &|_| true),
        },
        "f:spec": { "f:providerID": {} },
    });
    let mut of_warrend = keys(&metadata["annotations"], &is_published);
    of_warrend.remove(".");
    let of_controllers = json!({
        "f:metadata": { "f:annotations": { "f:node.alpha.kubernetes.io/ttl": {} } },
        "f:spec": { "f:podCIDR": {}, "f:podCIDRs": { ".": {}, "v:\"10.0.0.0/24\"": {} }, "f:taints": {} },
    });
    let mut entries = vec![
        entry("kubelet", "Update", of_kubelet, now),
        entry("kube-controller-manager", "Update", of_controllers, now),
    ];
    if !of_warrend.is_empty() {
        let fields = json!({ "f:metadata": { "f:annotations": of_warrend } });
        entries.push(entry("warrend", "Apply", fields, now));
    }
    let mut status = entry("kubelet", "Update", json!({ "f:status": fields_of_status() }), now);
    status["subresource"] = json!("status");
    entries.push(status);
    object["metadata"]["managedFields"] = entries.into();
}

/// What a kubelet lists: one entry for each member of each condition.
fn fields_of_status() -> Value {
    let condition = json!({
        ".": {}, "f:lastHeartbeatTime": {}, "f:lastTransitionTime": {}, "f:message": {}, "f:reason": {},
        "f:status": {}, "f:type": {},
    });
    let conditions: Map<String, Value> = ["DiskPressure", "MemoryPressure", "PIDPressure", "Ready"]
        .iter()
        .map(|kind| (format!("k:{{\"type\":\"{kind}\"}}"), condition.clone()))
        .collect();
    json!({
        "f:addresses": { ".": {}, "k:{\"type\":\"Hostname\"}": { ".": {}, "f:address": {}, "f:type": {} },
            "k:{\"type\":\"InternalIP\"}": { ".": {}, "f:address": {}, "f:type": {} } },
        "f:allocatable": { ".": {}, "f:cpu": {}, "f:ephemeral-storage": {}, "f:memory": {}, "f:pods": {} },
        "f:capacity": { ".": {}, "f:cpu": {}, "f:ephemeral-storage": {}, "f:memory": {}, "f:pods": {} },
        "f:conditions": conditions,
        "f:daemonEndpoints": { "f:kubeletEndpoint": { "f:Port": {} } },
        "f:images": {},
        "f:nodeInfo": { "f:architecture": {}, "f:bootID": {}, "f:containerRuntimeVersion": {},
            "f:kernelVersion": {}, "f:kubeletVersion": {}, "f:machineID": {}, "f:osImage": {} },
    })
}

fn entry(manager: &str, operation: &str, fields: Value, now: Timestamp) -> Value {
    json!({
        "manager": manager, "operation": operation, "apiVersion": "v1", "time": rfc3339(now),
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    })
}

/// Every heartbeat is a write of the kubelet's, dated in its entry.
pub(super) fn stamp_heartbeats(metadata: &mut Map<String, Value>, time: &str) {
    let entries = metadata.get_mut("managedFields").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten() {
        if entry["manager"] == "kubelet" && entry["subresource"] == "status" {
            entry["time"] = json!(time);
        }
    }
}

/// The owners of a field other than `manager`, as Kubernetes prints them.
pub(super) fn others(object: &Value, manager: Manager, path: &Path) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let others = entries.into_iter().flatten().filter(|entry| !manager.is(entry) && owns(entry, path));
    others.map(printed).collect()
}

fn printed(entry: &Value) -> String {
    let mut text = entry["manager"].to_string();
    if let Some(subresource) = entry["subresource"].as_str() {
        text += &format!(" with subresource {subresource:?}");
    }
    if entry["operation"] == "Update" {
        text += &format!(" using {}", entry["apiVersion"].as_str().unwrap_or_default());
        if let Some(time) = entry["time"].as_str() {
            text += &format!(" at {time}");
        }
    }
    text
}

/// The keys of a map (`["metadata", "annotations"]`) that a manager owns.
pub(super) fn owned_keys(object: &Value, manager: Manager, map: &Path) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let Some(entry) = entries.into_iter().flatten().find(|entry| manager.is(entry)) else {
        return Vec::new();
    };
    let fields = map.iter().fold(&entry["fieldsV1"], |fields, segment| &fields[format!("f:{segment}")]);
    let keys = fields.as_object().into_iter().flatten();
    keys.filter_map(|(key, _)| key.strip_prefix("f:").map(str::to_owned)).collect()
}

/// Takes a field from every manager but `keep`.
pub(super) fn release(object: &mut Value, path: &Path, keep: Option<Manager>) {
    let Some(entries) = entries_of(object) else { return };
    for entry in entries.iter_mut().filter(|entry| !keep.is_some_and(|manager| manager.is(entry))) {
        if owns(entry, path) {
            remove(&mut entry["fieldsV1"], path);
        }
    }
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
}

/// Takes a field from one manager.
pub(super) fn give_up(object: &mut Value, manager: Manager, path: &Path) {
    let Some(entries) = entries_of(object) else { return };
    for entry in entries.iter_mut().filter(|entry| manager.is(entry)) {
        remove(&mut entry["fieldsV1"], path);
    }
    entries.retain(|entry| entry["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()));
}

/// Gives a field to a manager, whoever else owns it. The manager's time changes only with what it owns or
/// wrote.
pub(super) fn claim(object: &mut Value, manager: Manager, path: &Path, now: Timestamp) {
    let metadata = &mut object["metadata"];
    if !metadata["managedFields"].is_array() {
        metadata["managedFields"] = json!([]);
    }
    let Some(entries) = metadata["managedFields"].as_array_mut() else { return };
    let index = entries.iter().position(|entry| manager.is(entry)).unwrap_or_else(|| {
        entries.push(entry(manager.name, manager.operation, json!({}), now));
        entries.len() - 1
    });
    let mut fields = &mut entries[index]["fieldsV1"];
    for segment in path {
        fields = &mut fields[format!("f:{segment}")];
        if fields.is_null() {
            *fields = json!({});
        }
    }
}

/// Dates a manager's entry.
pub(super) fn touch(object: &mut Value, manager: Manager, now: Timestamp) {
    for entry in entries_of(object).into_iter().flatten() {
        if manager.is(entry) {
            entry["time"] = json!(rfc3339(now));
        }
    }
}

/// The entries, to be changed; asking must not add an empty list where there is none.
fn entries_of(object: &mut Value) -> Option<&mut Vec<Value>> {
    object.pointer_mut("/metadata/managedFields")?.as_array_mut()
}

fn owns(entry: &Value, path: &Path) -> bool {
    path.iter().try_fold(&entry["fieldsV1"], |fields, segment| fields.get(format!("f:{segment}"))).is_some()
}

/// Removes a leaf, and the parents that it leaves empty.
fn remove(fields: &mut Value, path: &Path) {
    let (Some((first, rest)), Some(map)) = (path.split_first(), fields.as_object_mut()) else { return };
    let key = format!("f:{first}");
    if !rest.is_empty()
        && let Some(below) = map.get_mut(&key)
    {
        remove(below, rest);
        if below.as_object().is_some_and(|below| !below.is_empty()) {
            return;
        }
    }
    map.remove(&key);
}
