//! Changes of a Node: one function from the object, the patch and its terms to the object as it will be.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::apply;
use super::managed::{self, Manager};
use super::status::Refusal;

/// `metadata.annotations` may not be larger, keys and values together.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// The kinds of patch, by their media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// `application/apply-patch+yaml`.
    Apply,
    /// `application/strategic-merge-patch+json`.
    Strategic,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/json-patch+json`.
    Json,
}

impl PatchKind {
    pub(super) fn of(media_type: &str) -> Result<Self, Refusal> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/apply-patch+yaml" => Ok(Self::Apply),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/json-patch+json" => Ok(Self::Json),
            other => Err(Refusal::unsupported_media_type(other)),
        }
    }

    /// Reads the body of such a patch.
    pub(super) fn parse(self, body: &[u8]) -> Result<Value, Refusal> {
        let parsed = match self {
            Self::Apply => serde_norway::from_slice(body).map_err(|error| error.to_string()),
            _ => serde_json::from_slice(body).map_err(|error| error.to_string()),
        };
        match parsed {
            Ok(operations @ Value::Array(_)) if self == Self::Json => Ok(operations),
            Ok(object @ Value::Object(_)) if self != Self::Json => Ok(object),
            Ok(_) => Err(Refusal::bad_request("the patch is neither an object nor a list of operations")),
            Err(error) => Err(Refusal::bad_request(format!("error decoding patch: {error}"))),
        }
    }
}

/// A patch, read but not yet applied.
#[derive(Debug)]
pub(super) struct Patch<'a> {
    pub kind: PatchKind,
    pub body: &'a Value,
    /// The Node in the path.
    pub name: &'a str,
    /// `fieldManager=`, or who the client says it is.
    pub manager: &'a str,
    pub force: bool,
    pub now: Timestamp,
}

impl Patch<'_> {
    /// What remains to be said where there is no such Node.
    ///
    /// An apply would create it, which no daemon may do; one that names a UID says that there must be one.
    pub fn without_node(&self) -> Refusal {
        match (self.kind, self.body["metadata"]["uid"].as_str()) {
            (PatchKind::Apply, Some(uid)) => {
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                Refusal::conflict(self.name, &why)
            }
            (PatchKind::Apply, None) => {
                Refusal::forbidden("an apply would create it, and nobody here may create nodes")
            }
            _ => Refusal::not_found(self.name),
        }
    }

    /// The object as it will be; the same if the patch changes nothing.
    pub fn patched(&self, object: &Value) -> Result<Value, Refusal> {
        if self.kind == PatchKind::Apply {
            apply::check_body(self.body, self.name)?;
        }
        self.preconditions(object)?;
        let mut patched = object.clone();
        let (manager, force, now) = (self.manager, self.force, self.now);
        if self.kind == PatchKind::Apply {
            apply::apply(&mut patched, self.body, apply::Terms { manager, force, now })?;
        } else {
            match self.kind {
                PatchKind::Json => self.operate(&mut patched)?,
                _ => self.merge(&mut patched)?,
            }
            update_owners(object, &mut patched, Manager { name: manager, operation: "Update" }, now);
        }
        let annotations = patched["metadata"]["annotations"].as_object().into_iter().flatten();
        let size: usize =
            annotations.map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len()).sum();
        if size > ANNOTATIONS_MAX {
            let why = format!("Too long: may not be more than {ANNOTATIONS_MAX} bytes");
            return Err(Refusal::invalid(self.name, "metadata.annotations", &why));
        }
        Ok(patched)
    }

    /// A version or UID in the body must be the object's. A wrong UID is *422 Invalid*, since to Kubernetes
    /// it is an attempt to change the UID.
    fn preconditions(&self, object: &Value) -> Result<(), Refusal> {
        let (wanted, actual) = (&self.body["metadata"], &object["metadata"]);
        if !wanted["uid"].is_null() && wanted["uid"] != actual["uid"] {
            let why = format!("Invalid value: {}: field is immutable", wanted["uid"]);
            return Err(Refusal::invalid(self.name, "metadata.uid", &why));
        }
        if !wanted["resourceVersion"].is_null() && wanted["resourceVersion"] != actual["resourceVersion"] {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Refusal::conflict(self.name, why));
        }
        Ok(())
    }

    /// RFC 6902. A test that fails, or a place that is not there, is *422 Invalid*.
    fn operate(&self, object: &mut Value) -> Result<(), Refusal> {
        let operations: json_patch::Patch = serde_json::from_value(self.body.clone())
            .map_err(|error| Refusal::bad_request(format!("error decoding patch: {error}")))?;
        json_patch::patch(object, &operations)
            .map_err(|error| Refusal::invalid(self.name, "", &error.to_string()))
    }

    fn merge(&self, object: &mut Value) -> Result<(), Refusal> {
        let mut body = self.body.clone();
        // The status has a subresource of its own; here it is ignored, as by a real server.
        if let Some(body) = body.as_object_mut() {
            body.remove("status");
        }
        // Taints are a list without a merge key, which is replaced as a whole: what it cannot be told is no taint.
        if let Some(taints) = body["spec"]["taints"].as_array()
            && taints.iter().any(|taint| taint["effect"].is_null())
        {
            return Err(Refusal::invalid(self.name, "spec.taints[0].effect", "Required value"));
        }
        if let Some(directive) = directive_in(&body) {
            return Err(Refusal::beyond_the_fake(&format!(
                "the directive {directive} of a strategic merge patch"
            )));
        }
        let name = object["metadata"]["name"].clone();
        json_merge(object, &body);
        if object["metadata"]["name"] != name {
            return Err(Refusal::bad_request("the name of the object does not match the name on the URL"));
        }
        for map in ["annotations", "labels"] {
            for (key, value) in object["metadata"][map].as_object().into_iter().flatten() {
                if !value.is_string() {
                    let why = format!("cannot unmarshal metadata.{map}.{key}: {value} into a string");
                    return Err(Refusal::bad_request(why));
                }
            }
        }
        Ok(())
    }
}

/// A key that begins with `$`: a directive, which is no data.
fn directive_in(value: &Value) -> Option<&str> {
    match value {
        Value::Object(map) => {
            map.iter().find_map(
                |(key, value)| if key.starts_with('$') { Some(key.as_str()) } else { directive_in(value) },
            )
        }
        Value::Array(items) => items.iter().find_map(directive_in),
        _ => None,
    }
}

/// RFC 7386: objects are merged, `null` removes, everything else replaces.
fn json_merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            json_merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Writes who owns what after an update: what changed is the writer's alone, what vanished is nobody's.
pub(super) fn update_owners(before: &Value, after: &mut Value, manager: Manager, now: Timestamp) {
    let none = Map::new();
    let mut changed: Vec<(Vec<String>, bool)> = Vec::new();
    for map in ["annotations", "labels"] {
        let old = before["metadata"][map].as_object().unwrap_or(&none);
        let new = after["metadata"][map].as_object().unwrap_or(&none);
        let path = |key: &String| vec!["metadata".to_owned(), map.to_owned(), key.clone()];
        changed.extend(old.keys().filter(|key| !new.contains_key(*key)).map(|key| (path(key), false)));
        changed.extend(
            new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| (path(key), true)),
        );
    }
    let (old, new) = (&before["spec"], &after["spec"]);
    let fields = old.as_object().into_iter().flatten().chain(new.as_object().into_iter().flatten());
    let mut fields: Vec<&String> = fields.map(|(field, _)| field).collect();
    fields.sort();
    fields.dedup();
    for field in fields.into_iter().filter(|field| old.get(*field) != new.get(*field)) {
        changed.push((vec!["spec".to_owned(), field.clone()], new.get(field).is_some()));
    }
    let any = !changed.is_empty();
    for (path, exists) in changed {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        managed::release(after, &path, Some(manager));
        if exists {
            managed::claim(after, manager, &path, now);
        } else {
            managed::give_up(after, manager, &path);
        }
    }
    if any {
        managed::touch(after, manager, now);
    }
}
