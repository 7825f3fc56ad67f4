//! LIST: whole or in pages that belong together.

use std::sync::Arc;

use serde_json::json;

use super::Paging;
use super::object::{Form, Node};
use super::reply::List;
use super::request::{Continue, Query};
use super::shared::Shared;
use super::status::Refusal;
use super::store::{Snapshot, Store};

/// Cuts the page that a request asks for.
pub(super) fn page(shared: &Shared, query: &Query, form: Form) -> Result<List, Refusal> {
    let name = query.name_selected()?;
    let limit = limit(shared.options.paging, query)?;
    shared.write(|store| {
        let (version, snapshot, after) = match query.get("continue") {
            Some(token) => {
                let token = Continue::decode(token)?;
                (token.version, store.kept(token.version)?, Some(token.after))
            }
            None => (store.version(), begin(store, query)?, None),
        };
        let start = after.map_or(0, |after| snapshot.partition_point(|node| node.text.name <= after));
        let chosen = |node: &&Arc<Node>| name.is_none_or(|name| node.text.name == name);
        let nodes: Vec<Arc<Node>> = snapshot[start..].iter().filter(chosen).take(limit).cloned().collect();
        let remaining = if name.is_some() { 0 } else { snapshot.len() - start - nodes.len() };
        let next = nodes
            .last()
            .filter(|_| remaining > 0)
            .map(|last| Continue { version, after: last.text.name.clone() });
        if next.is_some() {
            store.keep(version, snapshot);
        }
        Ok(List { head: head(form, version, next, remaining), nodes, written: 0, form })
    })
}

fn limit(paging: Paging, query: &Query) -> Result<usize, Refusal> {
    if paging == Paging::NotFromCache && query.get("resourceVersion") == Some("0") {
        return Ok(usize::MAX);
    }
    Ok(query.number("limit")?.filter(|limit| *limit > 0).map_or(usize::MAX, |limit| limit as usize))
}

/// The list as of now, if now is new enough.
fn begin(store: &Store, query: &Query) -> Result<Snapshot, Refusal> {
    let asked = query.number("resourceVersion")?.unwrap_or(0);
    match query.get("resourceVersionMatch") {
        None | Some("NotOlderThan") => {}
        Some("Exact") => return Err(Refusal::beyond_the_fake("resourceVersionMatch=Exact")),
        Some(other) => {
            return Err(Refusal::bad_request(format!("resourceVersionMatch: unknown value {other:?}")));
        }
    }
    if query.get("resourceVersionMatch").is_some() && query.get("resourceVersion").is_none() {
        let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        return Err(Refusal::bad_request(why));
    }
    newer_than(store, asked)?;
    Ok(store.snapshot())
}

/// Refuses what asks for a version that is yet to come.
pub(super) fn newer_than(store: &Store, asked: u64) -> Result<(), Refusal> {
    if asked > store.version() {
        return Err(Refusal::too_large_resource_version(asked, store.version()));
    }
    Ok(())
}

/// The text before the first item.
fn head(form: Form, version: u64, next: Option<Continue>, remaining: usize) -> String {
    let (kind, api) = match form {
        Form::Full => ("NodeList", "v1"),
        Form::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1"),
    };
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(next) = next {
        metadata["continue"] = json!(next.encode());
        metadata["remainingItemCount"] = json!(remaining);
    }
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api}\",\"metadata\":{metadata},\"items\":[")
}
