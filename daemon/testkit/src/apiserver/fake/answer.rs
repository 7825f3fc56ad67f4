//! From a request to its answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::counters::{Outcome, Verb, Write};
use super::faults::Stall;
use super::list;
use super::patch::{Patch, PatchKind};
use super::reply::{Answer, Content, Reply};
use super::request::{self, Query, Target};
use super::shared::{Shared, lock};
use super::status::Refusal;
use super::watch::Watch;

/// No body may be larger (etcd takes 1.5 MiB, an API server 3).
const BODY_MAX: usize = 3 << 20;

/// Answers one request, after the faults that are in force.
pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let verb = request::verb(&parts);
    shared.counters.request(verb);
    let latency = shared.control.borrow().latency;
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    // Fails when the server has ended, and this with it.
    let _ = shared.control.subscribe().wait_for(|control| control.stall != Some(Stall::Everything)).await;
    let answer = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => fulfil(&shared, &parts, verb, &body.to_bytes()),
        Err(error) => Err(Refusal::bad_request(format!("reading the body: {error}"))),
    };
    Ok(answer.unwrap_or_else(|refusal| Reply::refusal(&shared, verb, &refusal)))
}

fn fulfil(shared: &Arc<Shared>, parts: &Parts, verb: Verb, body: &Bytes) -> Result<Response<Reply>, Refusal> {
    authenticate(shared, parts)?;
    if let Some(refusal) = shared.failure(verb) {
        return Err(refusal);
    }
    let respond = |code, content| Ok(Reply::response(shared, verb, code, content));
    let query = Query::new(parts);
    match (request::target(parts.uri.path())?, &parts.method) {
        (Target::Nodes, &Method::GET) if query.is_true("watch") => {
            let watch = Watch::new(&query, request::form(parts)?)?;
            respond(200, Content::Feed(watch.start(shared)?))
        }
        (Target::Nodes, &Method::GET) => {
            respond(200, Content::List(list::page(shared, &query, request::form(parts)?)?))
        }
        (Target::Node(name), &Method::GET) => {
            let form = request::form(parts)?;
            let asked = query.number("resourceVersion")?.unwrap_or(0);
            let node = shared.read(|store| {
                list::newer_than(store, asked)?;
                store.get(&name).cloned().ok_or_else(|| Refusal::not_found(&name))
            })?;
            respond(200, Content::Whole(node.to_bytes(form).into()))
        }
        (Target::Node(name), &Method::PATCH) => {
            let form = request::form(parts)?;
            let node = patch(shared, parts, &query, &name, body)?;
            respond(200, Content::Whole(node.to_bytes(form).into()))
        }
        (Target::Events(namespace), &Method::POST) => {
            let event = event(&namespace, body)?;
            lock(&shared.events).push(event.clone());
            respond(201, Content::Whole(event.to_string().into()))
        }
        (Target::Health, &Method::GET) => respond(200, Content::Whole("ok".into())),
        (Target::Version, &Method::GET) => {
            let version = json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.0-fake", "platform": "linux/amd64" });
            respond(200, Content::Whole(version.to_string().into()))
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn authenticate(shared: &Shared, parts: &Parts) -> Result<(), Refusal> {
    let token = lock(&shared.token);
    let Some(token) = token.as_deref() else { return Ok(()) };
    let given = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    if given.and_then(|given| given.strip_prefix("Bearer ")) != Some(token) {
        return Err(Refusal::unauthorized());
    }
    Ok(())
}

fn patch(
    shared: &Shared,
    parts: &Parts,
    query: &Query,
    name: &str,
    body: &[u8],
) -> Result<Arc<super::object::Node>, Refusal> {
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = PatchKind::of(header("content-type"))?;
    let body = kind.parse(body)?;
    // Who does not say goes by the name of its program, as with a real server.
    let client = header("user-agent").split('/').next().unwrap_or_default();
    let manager = match (query.get("fieldManager"), kind) {
        (Some(manager), _) => manager,
        (None, PatchKind::Apply) => {
            let why = "Required value: is required for apply patch";
            return Err(Refusal::invalid(name, "fieldManager", why));
        }
        (None, _) => client,
    };
    let force = query.is_true("force");
    let patch = Patch { kind, body: &body, name, manager, force, now: Timestamp::now() };
    let result = shared.patch(&patch);
    let outcome = match &result {
        Ok((node, true)) => {
            let annotations = node.to_object().map(|mut object| object["metadata"]["annotations"].take());
            Outcome::Changed(annotations.unwrap_or_default())
        }
        Ok((_, false)) => Outcome::Unchanged,
        Err(refusal) => Outcome::Refused(refusal.code),
    };
    let (node, manager) = (name.to_owned(), manager.to_owned());
    lock(&shared.writes).push(Write { at: Instant::now(), node, kind, manager, force, body, outcome });
    result.map(|(node, _)| node)
}

/// An Event of events.k8s.io/v1, or the reason why it is none.
fn event(namespace: &str, body: &[u8]) -> Result<Value, Refusal> {
    let mut event: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("error decoding the Event: {error}")))?;
    if event["apiVersion"] != "events.k8s.io/v1" || event["kind"] != "Event" {
        return Err(Refusal::bad_request("expected an events.k8s.io/v1 Event in the body"));
    }
    let given = event["metadata"]["namespace"].as_str().unwrap_or(namespace);
    if given != namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Refusal::bad_request(why));
    }
    let name = event["metadata"]["name"].as_str().or_else(|| event["metadata"]["generateName"].as_str());
    let name = name.unwrap_or_default().to_owned();
    let missing = ["eventTime", "reportingController", "reportingInstance", "action", "reason", "type"]
        .into_iter()
        .find(|field| event[field].as_str().is_none_or(str::is_empty));
    match missing {
        _ if name.is_empty() => {
            Err(Refusal::invalid("", "metadata.name", "Required value: name or generateName is required"))
        }
        Some(field) => Err(Refusal::invalid(&name, field, "Required value")),
        None => {
            event["metadata"]["namespace"] = json!(namespace);
            Ok(event)
        }
    }
}
