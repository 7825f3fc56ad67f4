//! A Node as it is kept: JSON text, written once, with holes for what changes at every heartbeat.
//!
//! 5,000 Nodes of 12 KiB are 60 MiB of text but several times that as parsed objects, and a heartbeat changes
//! 20 bytes of it in four places. So the text stays, shared by all versions of a Node that differ in no more
//! than that; who wants to change more parses it, changes it, and writes it anew.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::managed;

/// How a client wants its Nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `Node`.
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// One version of a Node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub resource_version: u64,
    /// When the kubelet was last heard.
    pub heartbeat: Timestamp,
    pub text: Arc<Text>,
}

/// What all versions share between which only heartbeats lie.
#[derive(Debug)]
pub(super) struct Text {
    pub name: String,
    pub uid: String,
    metadata: Template,
    /// `spec`, `status`, and whatever else the object has.
    others: Template,
}

impl Node {
    /// Takes an object as the test or a patch made it; what it says of `resourceVersion` and heartbeats is
    /// replaced.
    pub fn new(mut object: Value, resource_version: u64, heartbeat: Timestamp) -> Result<Self> {
        let mut metadata = match object["metadata"].take() {
            Value::Object(metadata) => metadata,
            other => anyhow::bail!("metadata of a Node is an object, not {other}"),
        };
        let text_of = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, uid) = (text_of("name"), text_of("uid"));
        ensure!(!name.is_empty() && !uid.is_empty(), "a Node needs metadata.name and metadata.uid");
        metadata.insert("resourceVersion".to_owned(), json!(RESOURCE_VERSION));
        metadata.entry("creationTimestamp").or_insert_with(|| json!(rfc3339(heartbeat)));
        managed::stamp_heartbeats(&mut metadata, HEARTBEAT);
        let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if let Some(time) = condition.get_mut("lastHeartbeatTime") {
                *time = json!(HEARTBEAT);
            }
        }
        let mut others = match object {
            Value::Object(others) => others,
            other => anyhow::bail!("a Node is an object, not {other}"),
        };
        others.retain(|key, value| !["apiVersion", "kind", "metadata"].contains(&&**key) && !value.is_null());
        let metadata = Template::new(metadata, &METADATA);
        let text = Text { name, uid, metadata, others: Template::new(others, &[]) };
        Ok(Self { resource_version, heartbeat, text: Arc::new(text) })
    }

    /// The same Node in another version.
    pub fn at(&self, resource_version: u64, heartbeat: Timestamp) -> Self {
        Self { resource_version, heartbeat, text: self.text.clone() }
    }

    /// Appends the object as JSON. `typed` as an object of its own: items of a `NodeList` have no kind.
    pub fn write(&self, out: &mut Vec<u8>, form: Form, typed: bool) {
        let heartbeat = rfc3339(self.heartbeat);
        let prefix: &[u8] = match (form, typed) {
            (Form::Full, false) => b"{\"metadata\":",
            (Form::Full, true) => b"{\"kind\":\"Node\",\"apiVersion\":\"v1\",\"metadata\":",
            (Form::Metadata, _) => {
                b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":"
            }
        };
        out.extend_from_slice(prefix);
        self.text.metadata.write(out, self.resource_version, &heartbeat);
        if form == Form::Full && self.text.others.text.len() > "{}".len() {
            out.push(b',');
            // Without its brace: its members are members of the Node.
            let start = out.len();
            self.text.others.write(out, self.resource_version, &heartbeat);
            out.remove(start);
        } else {
            out.push(b'}');
        }
    }

    /// The whole object as JSON.
    pub fn to_bytes(&self, form: Form) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, form, true);
        bytes
    }

    /// The whole object, parsed, to be changed.
    pub fn to_object(&self) -> Result<Value> {
        serde_json::from_slice(&self.to_bytes(Form::Full))
            .with_context(|| format!("reading Node {} as it was written", self.text.name))
    }
}

/// The time as Kubernetes writes it: UTC, whole seconds.
pub(super) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The members of metadata, in the order in which Kubernetes writes them (`ObjectMeta`,
/// k8s.io/apimachinery/pkg/apis/meta/v1/types.go).
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Marks of the holes: text that no test would use, of characters that JSON does not escape.
const RESOURCE_VERSION: &str = "\u{e000}resourceVersion\u{e000}";
const HEARTBEAT: &str = "\u{e000}heartbeat\u{e000}";

/// JSON text with holes.
#[derive(Debug)]
struct Template {
    text: Box<str>,
    /// Position in the text, and what belongs there; ascending.
    holes: Vec<(usize, Hole)>,
}

#[derive(Debug, Clone, Copy)]
enum Hole {
    ResourceVersion,
    Heartbeat,
}

impl Template {
    /// An object's members, first those of `order`.
    fn new(object: Map<String, Value>, order: &[&str]) -> Self {
        let place = |name: &str| order.iter().position(|other| *other == name).unwrap_or(order.len());
        let mut members: Vec<_> = object.into_iter().collect();
        members.sort_by_key(|(name, _)| place(name));
        let members: Vec<_> =
            members.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        let marked = format!("{{{}}}", members.join(","));
        let mut text = String::with_capacity(marked.len());
        let mut holes = Vec::new();
        let mut rest = marked.as_str();
        while let Some(position) = rest.find('\u{e000}') {
            text.push_str(&rest[..position]);
            rest = &rest[position..];
            let known = [(RESOURCE_VERSION, Hole::ResourceVersion), (HEARTBEAT, Hole::Heartbeat)];
            match known.into_iter().find(|(mark, _)| rest.starts_with(mark)) {
                Some((mark, hole)) => {
                    holes.push((text.len(), hole));
                    rest = &rest[mark.len()..];
                }
                // Somebody does use the character.
                None => {
                    text.push('\u{e000}');
                    rest = &rest['\u{e000}'.len_utf8()..];
                }
            }
        }
        text.push_str(rest);
        Self { text: text.into(), holes }
    }

    fn write(&self, out: &mut Vec<u8>, resource_version: u64, heartbeat: &str) {
        let mut from = 0;
        for &(position, hole) in &self.holes {
            out.extend_from_slice(&self.text.as_bytes()[from..position]);
            match hole {
                Hole::ResourceVersion => out.extend_from_slice(resource_version.to_string().as_bytes()),
                Hole::Heartbeat => out.extend_from_slice(heartbeat.as_bytes()),
            }
            from = position;
        }
        out.extend_from_slice(&self.text.as_bytes()[from..]);
    }
}
