//! What a Node in the registry can have wrong with it: one row for each reason to quarantine it.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use warren_api::{Announcement, Node, annotations};
use warren_testkit::lab::Manifest;

use crate::common::Mesh;

/// The Node that goes bad, as its text is made from: first as its warrend announced it.
pub struct Subject {
    /// The Node without Warren's annotations.
    pub manifest: Manifest,
    /// Its announcement.
    pub announcement: Value,
    /// The whole file, in place of the above.
    pub file: Option<Vec<u8>>,
}

/// One row.
pub struct BadNode {
    /// What is wrong.
    pub what: &'static str,
    /// A part of the reason that node 1 is to give.
    pub reason: &'static str,
    /// Another node that the claim contradicts: a third believes neither.
    pub contradicts: Option<usize>,
    /// Makes it so.
    pub spoil: fn(&Mesh, &mut Subject),
}

impl Subject {
    /// The announced state of a node.
    pub fn of(mesh: &Mesh, number: usize) -> Result<Self> {
        let node = mesh.node(number);
        let text = std::fs::read_to_string(node.manifest_path())?;
        let registered: Node = serde_norway::from_str(&text)?;
        let announcement = registered.metadata.annotations.get(annotations::ANNOUNCEMENT);
        let announcement = announcement.with_context(|| format!("{} has announced nothing", node.name))?;
        Announcement::parse(announcement)?;
        Ok(Self { manifest: node.manifest(), announcement: serde_json::from_str(announcement)?, file: None })
    }

    /// The file of the manifest.
    pub fn to_file(&self) -> Vec<u8> {
        self.file.clone().unwrap_or_else(|| self.to_yaml().into())
    }

    fn to_yaml(&self) -> String {
        let mut manifest = self.manifest.clone();
        manifest.annotations.push((annotations::ANNOUNCEMENT.into(), self.announcement.to_string()));
        manifest.to_yaml()
    }

    /// The manifest with something else in place of a part of its text.
    fn replace(&mut self, part: &str, other: &str) {
        let text = self.to_yaml();
        assert!(text.contains(part), "the manifest does not contain {part}");
        self.file = Some(text.replace(part, other).into());
    }

    fn key(&mut self) -> &mut Value {
        &mut self.announcement["epochs"][0]["publicKey"]
    }

    /// The registry gives the node this pod CIDR, and it announces it.
    fn give(&mut self, cidr: &str) {
        self.manifest.pod_cidrs = vec![cidr.parse().expect("the table holds CIDRs")];
        self.announcement["podCIDRs"] = json!([cidr]);
    }

    /// The registry gives the node this address, and it announces it.
    fn move_to(&mut self, address: &str) {
        self.manifest.internal_ips = vec![address.parse().expect("the table holds addresses")];
        self.announcement["endpoints"] = json!([address]);
    }
}

const fn row(what: &'static str, reason: &'static str, spoil: fn(&Mesh, &mut Subject)) -> BadNode {
    BadNode { what, reason, contradicts: None, spoil }
}

const fn contradicting(
    what: &'static str,
    reason: &'static str,
    node: usize,
    spoil: fn(&Mesh, &mut Subject),
) -> BadNode {
    BadNode { contradicts: Some(node), ..row(what, reason, spoil) }
}

/// All rows. The Node is node 3; node 1 judges it, and is 192.0.2.1 with the pods 10.244.1.0/24.
pub const BAD_NODES: &[BadNode] = &[
    row("an empty file", "holds no Node", |_, it| it.file = Some(Vec::new())),
    row("half a file", "is no ", |_, it| it.file = it.to_file().get(..700).map(<[u8]>::to_vec)),
    row("no text", "cannot be read", |_, it| it.file = Some(vec![0xff; 4096])),
    row("another kind of object", "not a Node", |_, it| it.replace("kind: Node", "kind: ConfigMap")),
    row("a pod CIDR that is none", "is no CIDR", |_, it| {
        it.replace("\"10.244.3.0/24\"", "\"10.244.3.0/240\"")
    }),
    row("an address that is none", "is no IP address", |_, it| {
        it.replace("\"192.0.2.3\"", "\"192.0.2.300\"")
    }),
    row("an announcement that is no JSON", "malformed", |_, it| it.announcement = json!("version 1")),
    row("an announcement without keys", "malformed", |_, it| {
        it.announcement.as_object_mut().expect("an object").remove("epochs");
    }),
    row("an announcement of a later version", "version 2", |_, it| it.announcement["version"] = json!(2)),
    row("the announcement of another node", "node \"node-2\"", |_, it| {
        it.announcement["node"] = json!("node-2")
    }),
    row("the announcement of an earlier Node of this name", "UID", |_, it| {
        it.manifest.uid = "another".into()
    }),
    row("the zero key", "all zero", |_, it| {
        *it.key() = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    }),
    row("a key of small order", "weak", |_, it| {
        *it.key() = json!("4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=")
    }),
    row("half a key", "32 bytes", |_, it| *it.key() = json!("AAAAAAAAAAAAAAAAAAAAAA==")),
    contradicting("the own key of who judges", "this node's own public key", 1, |mesh, it| {
        *it.key() = json!(mesh.node(1).status().expect("node 1 has a status").public_key);
    }),
    contradicting("the key of a third node", "as does node \"node-2\"", 2, |mesh, it| {
        *it.key() = json!(mesh.node(2).status().expect("node 2 has a status").public_key);
    }),
    row("a key of an epoch that is not now", "no key of this node's epoch", |_, it| {
        it.announcement["epochs"][0]["epoch"] = json!(6);
    }),
    row("port 0", "port 0", |_, it| it.announcement["epochs"][0]["port"] = json!(0)),
    row("a foreign pod CIDR in the announcement", "did not give it", |_, it| {
        it.announcement["podCIDRs"] = json!(["10.244.3.0/24", "10.244.2.0/24"]);
    }),
    row("the world as pod CIDR in the announcement", "did not give it", |_, it| {
        it.announcement["podCIDRs"] = json!(["0.0.0.0/0"]);
    }),
    row("a foreign endpoint in the announcement", "none of the Node's InternalIPs", |_, it| {
        it.announcement["endpoints"] = json!(["192.0.2.99"]);
    }),
    row("a loopback endpoint", "loopback", |_, it| it.move_to("127.0.0.1")),
    contradicting("the endpoint of who judges", "this node's own", 1, |_, it| it.move_to("192.0.2.1")),
    contradicting("the endpoint of a third node", "claimed by node \"node-2\"", 2, |_, it| {
        it.move_to("192.0.2.2")
    }),
    row("the address of a pod as endpoint", "inside the pod CIDR", |_, it| it.move_to("10.244.2.11")),
    row("no pod CIDR any more", "did not give it", |_, it| it.manifest.pod_cidrs = Vec::new()),
    contradicting("the pod CIDR of who judges", "overlaps this node's", 1, |_, it| it.give("10.244.1.0/24")),
    contradicting("the pod CIDR of a third node", "of node \"node-2\"", 2, |_, it| {
        it.give("10.244.2.128/25")
    }),
    row("a pod CIDR that covers the underlay", "the underlay", |_, it| it.give("192.0.0.0/16")),
    row("a pod CIDR that covers the world", "too wide", |_, it| it.give("0.0.0.0/0")),
];
