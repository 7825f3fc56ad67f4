//! What a request asks: its path, its parameters, the form it wants.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Method;
use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::counters::Verb;
use super::object::Form;
use super::status::Refusal;

/// A request that the server knows how to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Nodes,
    Node(String),
    /// In this namespace.
    Events(String),
    Health,
    Version,
}

/// The parameters of a request, decoded.
#[derive(Debug)]
pub(super) struct Query(BTreeMap<String, String>);

pub(super) fn target(path: &str) -> Result<Target, Refusal> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments[..] {
        ["api", "v1", "nodes"] => Ok(Target::Nodes),
        ["api", "v1", "nodes", name] => Ok(Target::Node(decode(name))),
        ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events"] => {
            Ok(Target::Events(decode(namespace)))
        }
        ["healthz" | "livez" | "readyz"] => Ok(Target::Health),
        ["version"] => Ok(Target::Version),
        _ => Err(Refusal::no_such_path()),
    }
}

/// The verb that a request counts as, however it is answered.
pub(super) fn verb(parts: &Parts) -> Verb {
    let (Ok(target), query) = (target(parts.uri.path()), Query::new(parts)) else { return Verb::Other };
    let metadata = form(parts).is_ok_and(|form| form == Form::Metadata);
    match (target, &parts.method) {
        (Target::Nodes, &Method::GET) => match (query.is_true("watch"), metadata) {
            (true, true) => Verb::WatchMetadata,
            (true, false) => Verb::Watch,
            (false, true) => Verb::ListMetadata,
            (false, false) => Verb::List,
        },
        (Target::Node(_), &Method::GET) => Verb::Get,
        (Target::Node(_), &Method::PATCH) => Verb::Patch,
        (Target::Events(_), &Method::POST) => Verb::PostEvent,
        _ => Verb::Other,
    }
}

/// The form that the header `Accept` asks for; the first that the server knows wins. Lists are asked for as
/// lists, watches and single objects as objects.
pub(super) fn form(parts: &Parts) -> Result<Form, Refusal> {
    let is_list = parts.uri.path().ends_with("/nodes") && !Query::new(parts).is_true("watch");
    let partial = if is_list { "PartialObjectMetadataList" } else { "PartialObjectMetadata" };
    let header = parts.headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let known = header.split(',').find_map(|choice| {
        let mut fields = choice.split(';').map(str::trim);
        let media_type = fields.next()?;
        if !["application/json", "application/*", "*/*"].contains(&media_type) {
            return None;
        }
        let parameters: BTreeMap<&str, &str> = fields.filter_map(|field| field.split_once('=')).collect();
        match parameters.get("as") {
            None => Some(Form::Full),
            Some(kind) if *kind == partial => {
                let group = (parameters.get("g"), parameters.get("v"));
                (group == (Some(&"meta.k8s.io"), Some(&"v1"))).then_some(Form::Metadata)
            }
            Some(_) => None,
        }
    });
    known.ok_or_else(Refusal::not_acceptable)
}

impl Query {
    pub fn new(parts: &Parts) -> Self {
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(key, value)| (decode(key), decode(value))).collect())
    }

    /// A parameter that is there and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn is_true(&self, key: &str) -> bool {
        matches!(self.0.get(key).map(String::as_str), Some("true" | "1" | ""))
    }

    pub fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Refusal::bad_request(format!("{key}: {text:?} is not a number")))
        };
        self.get(key).map(parse).transpose()
    }

    /// The only field selector that is of use with Nodes: one name.
    pub fn name_selected(&self) -> Result<Option<&str>, Refusal> {
        if self.get("labelSelector").is_some() {
            return Err(Refusal::beyond_the_fake("label selectors"));
        }
        let Some(selector) = self.get("fieldSelector") else { return Ok(None) };
        match selector.split_once('=') {
            Some(("metadata.name", name)) => Ok(Some(name.trim_start_matches('='))),
            _ => Err(Refusal::beyond_the_fake(&format!("the field selector {selector}"))),
        }
    }
}

/// Where the next page begins: after this name, in the list of that version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Continue {
    pub version: u64,
    pub after: String,
}

impl Continue {
    pub fn encode(&self) -> String {
        let token =
            json!({ "v": "meta.k8s.io/v1", "rv": self.version, "start": format!("{}\0", self.after) });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    pub fn decode(token: &str) -> Result<Self, Refusal> {
        let decoded = URL_SAFE_NO_PAD.decode(token).ok();
        let object: Option<Value> = decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let parsed = object.and_then(|object| {
            let after = object["start"].as_str()?.strip_suffix('\0')?.to_owned();
            Some(Self { version: object["rv"].as_u64()?, after })
        });
        parsed.ok_or_else(|| Refusal::bad_request("continue key is not valid"))
    }
}

/// Percent-decoding, and `+` for a blank.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next().unwrap_or(b'0')).to_digit(16).unwrap_or(0) as u8;
                digit() << 4 | digit()
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
