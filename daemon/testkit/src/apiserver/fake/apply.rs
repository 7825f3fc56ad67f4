//! Server-side apply, for annotations and labels: what the protocol of ownership needs, and no other field.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::managed::{self, Manager};
use super::status::Refusal;

/// The maps that may be applied.
const MAPS: [&str; 2] = ["annotations", "labels"];

/// What an apply says beside its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    /// `fieldManager=`.
    pub manager: &'a str,
    /// `force=`: take what others own.
    pub force: bool,
    pub now: Timestamp,
}

/// Applies `wanted` to `object`.
pub(super) fn apply(object: &mut Value, wanted: &Value, terms: Terms) -> Result<(), Refusal> {
    let manager = Manager { name: terms.manager, operation: "Apply" };
    let before = object.clone();
    for map in MAPS {
        let wanted = entries(wanted, map)?;
        if !terms.force {
            no_conflicts(object, manager, map, &wanted)?;
        }
        for key in managed::owned_keys(object, manager, &["metadata", map]) {
            if !wanted.contains_key(key.as_str()) {
                abandon(object, manager, map, &key);
            }
        }
        for (key, value) in wanted {
            let path = ["metadata", map, key];
            if object["metadata"][map][key] != value {
                // Those who wanted another value have lost it; who wanted this one may share it.
                managed::release(object, &path, Some(manager));
                object["metadata"][map][key] = json!(value);
            }
            managed::claim(object, manager, &path, terms.now);
        }
    }
    if *object != before {
        managed::touch(object, manager, terms.now);
    }
    Ok(())
}

/// The entries of a map in the body, which may be missing.
fn entries<'a>(body: &'a Value, map: &str) -> Result<BTreeMap<&'a str, &'a str>, Refusal> {
    let entries = body["metadata"][map].as_object().into_iter().flatten();
    entries
        .map(|(key, value)| match value.as_str() {
            Some(value) => Ok((key.as_str(), value)),
            None => Err(Refusal::bad_request(format!(
                "failed to create typed patch object: .metadata.{map}.{key}: expected string, got {value}"
            ))),
        })
        .collect()
}

fn no_conflicts(
    object: &Value,
    manager: Manager,
    map: &str,
    wanted: &BTreeMap<&str, &str>,
) -> Result<(), Refusal> {
    let mut conflicts = Vec::new();
    for (key, value) in wanted {
        if object["metadata"][map][*key] != *value {
            let owners = managed::others(object, manager, &["metadata", map, key]);
            conflicts.extend(owners.into_iter().map(|owner| (owner, format!(".metadata.{map}.{key}"))));
        }
    }
    if conflicts.is_empty() { Ok(()) } else { Err(Refusal::apply_conflict(&conflicts)) }
}

/// A manager no longer applies a key: it goes, unless somebody else wants it.
fn abandon(object: &mut Value, manager: Manager, map: &str, key: &str) {
    let path = ["metadata", map, key];
    managed::give_up(object, manager, &path);
    if managed::others(object, manager, &path).is_empty()
        && let Some(entries) = object["metadata"].get_mut(map).and_then(Value::as_object_mut)
    {
        entries.remove(key);
    }
}

/// Refuses bodies that a real server would refuse, and those that it would understand but this one does not.
pub(super) fn check_body(body: &Value, name: &str) -> Result<(), Refusal> {
    if body["apiVersion"] != "v1" || body["kind"] != "Node" {
        let (version, kind) = (&body["apiVersion"], &body["kind"]);
        return Err(Refusal::bad_request(format!("expected v1 Node in the body, got {version} {kind}")));
    }
    if body["metadata"]["name"] != name {
        let given = &body["metadata"]["name"];
        return Err(Refusal::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    if !body["metadata"]["managedFields"].is_null() {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    let mut known = vec!["name", "uid", "resourceVersion", "creationTimestamp"];
    known.extend(MAPS);
    let of_metadata = body["metadata"].as_object().into_iter().flatten();
    if let Some((field, _)) = of_metadata.into_iter().find(|(field, _)| !known.contains(&field.as_str())) {
        return Err(Refusal::beyond_the_fake(&format!("server-side apply of metadata.{field}")));
    }
    let known = ["apiVersion", "kind", "metadata"];
    let of_body = body.as_object().into_iter().flatten();
    if let Some((field, _)) = of_body.into_iter().find(|(field, _)| !known.contains(&field.as_str())) {
        return Err(Refusal::beyond_the_fake(&format!("server-side apply of {field}")));
    }
    Ok(())
}
