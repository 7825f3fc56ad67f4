//! What one node publishes about itself.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::PublicKey;

/// The version of the announcement that this code writes and obeys.
pub const VERSION: u32 = 1;

/// The longest announcement that is read, in bytes. Kubernetes allows 256 KiB for all annotations of an
/// object; one node has a handful of CIDRs and endpoints, so anything near this is not an announcement.
pub const MAX_BYTES: usize = 16 * 1024;

/// One node's claim about itself: all that a peer needs to build a tunnel to it.
///
/// It is a claim, not a fact: `warren-core` checks each part against what the registry itself knows of the
/// node before anything is built on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// Always [`VERSION`]; any other value is refused as a whole.
    pub version: u32,
    /// The name of the Node this announcement stands on.
    pub node: String,
    /// The UID of that Node object, so that an announcement copied to a Node created anew under the same
    /// name is recognised as stale. Empty where the registry gives none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The key generations this node can be reached with, at least one.
    pub epochs: Vec<EpochKey>,
    /// The pod CIDRs behind this node.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The node's underlay addresses, in the order it prefers to be reached.
    pub endpoints: Vec<IpAddr>,
    /// What carries this node's tunnels.
    pub backend: Backend,
    /// Why WireGuard in the kernel does not, where it was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The MTU inside the tunnel, in bytes.
    pub mtu: u32,
    /// Whether the node's own programs are to be reached through the tunnel, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypts_host: bool,
    /// Fields of later versions, kept as they came.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// The key of one generation and where it is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochKey {
    /// The number of the generation; it only ever grows, cluster-wide.
    pub epoch: u64,
    /// The WireGuard public key of this node in that generation.
    pub public_key: PublicKey,
    /// The UDP port of the first lane; lane i is served on port + i.
    pub port: u16,
    /// The number of lanes, at least 1.
    pub lanes: u8,
    /// Fields of later versions, kept as they came.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// What carries a node's tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// WireGuard in the Linux kernel.
    Kernel,
    /// The program `warren-tunnel`.
    Userspace,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// Why some text is no announcement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// The text is longer than [`MAX_BYTES`].
    #[error("the announcement is {0} bytes long; at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// The JSON is broken or lacks a field.
    #[error("the announcement is malformed: {0}")]
    Malformed(String),
    /// A version this code does not know: obeying half of it would be worse than obeying none.
    #[error("the announcement has version {0}; this Warren reads version {VERSION}, upgrade it")]
    UnknownVersion(u64),
}

impl Announcement {
    /// Reads the JSON document. The version is looked at first, so that a future document is named as such
    /// and not as a malformed one.
    pub fn parse(json: &str) -> Result<Self, AnnouncementError> {
        if json.len() > MAX_BYTES {
            return Err(AnnouncementError::TooLong(json.len()));
        }
        let malformed = |error: serde_json::Error| AnnouncementError::Malformed(error.to_string());
        let document: serde_json::Value = serde_json::from_str(json).map_err(malformed)?;
        match document.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version != u64::from(VERSION) => Err(AnnouncementError::UnknownVersion(version)),
            _ => serde_json::from_value(document).map_err(malformed),
        }
    }

    /// The JSON document, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an announcement has only string keys and finite numbers")
    }

    /// The key of one generation, if this node announces it.
    pub fn epoch(&self, epoch: u64) -> Option<&EpochKey> {
        self.epochs.iter().find(|key| key.epoch == epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = r#"{"version":1,"node":"a","uid":"u","epochs":[{"epoch":0,
        "publicKey":"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=","port":51820,"lanes":1,"shape":"round"}],
        "podCIDRs":["10.244.1.0/24","fd00:1::/64"],"endpoints":["192.0.2.1"],"backend":"userspace",
        "mtu":1420,"colour":{"of":"tomorrow"}}"#;

    #[test]
    fn unknown_fields_are_kept() {
        let announcement = Announcement::parse(EXAMPLE).unwrap();
        assert_eq!(announcement.unknown["colour"]["of"], "tomorrow");
        assert_eq!(announcement.epochs[0].unknown["shape"], "round");
        assert_eq!(Announcement::parse(&announcement.to_json()).unwrap(), announcement);
    }

    #[test]
    fn an_unknown_version_is_named_even_when_nothing_else_fits() {
        assert_eq!(
            Announcement::parse(r#"{"version": 7, "epochs": "later"}"#),
            Err(AnnouncementError::UnknownVersion(7))
        );
    }

    #[test]
    fn every_missing_field_is_malformed() {
        let full: serde_json::Value = serde_json::from_str(EXAMPLE).unwrap();
        for field in ["version", "node", "epochs", "podCIDRs", "endpoints", "backend", "mtu"] {
            let mut partial = full.clone();
            partial.as_object_mut().unwrap().remove(field);
            let error = Announcement::parse(&partial.to_string()).unwrap_err();
            assert!(matches!(&error, AnnouncementError::Malformed(why) if why.contains(field)), "{error}");
        }
    }

    #[test]
    fn a_flood_of_text_is_not_even_parsed() {
        assert_eq!(
            Announcement::parse(&" ".repeat(MAX_BYTES + 1)),
            Err(AnnouncementError::TooLong(MAX_BYTES + 1))
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = Announcement::parse(&text);
        }

        #[test]
        fn no_damage_to_a_real_one_makes_the_parser_panic(at in 0..EXAMPLE.len(), byte in 0x20u8..0x7f) {
            let mut text = EXAMPLE.as_bytes().to_vec();
            text[at] = byte;
            let _ = Announcement::parse(std::str::from_utf8(&text).unwrap());
        }
    }
}
