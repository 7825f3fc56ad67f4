//! The requests that Warren makes of the API server, and no others: what the ClusterRole `warren-daemon` allows.
//!
//! Each is counted. Lists are read as a stream, a Node at a time: 5,000 whole Nodes are 75 MB, of which a few
//! hundred bytes each are kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use http::{Method, Request};
use k8s_openapi::api::events::v1::Event;
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::io::SyncIoBridge;
use warren_api::annotations::NOT_READY;
use warren_api::node::{Metadata, Node, Partial};

use super::events::Events;
use super::list::{Page, read_list};

const NODES: &str = "/api/v1/nodes";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// Who owns the annotations, in server-side apply.
const FIELD_MANAGER: &str = "warrend";

/// Nodes in one page of the first list, as kubectl asks for. A server that answers from its cache may ignore it.
const PAGE: u32 = 500;

/// How long an answer may take: of one Node, of the beginning of a watch, and of a list of thousands.
const ANSWER: Duration = Duration::from_secs(10);
const LIST: Duration = Duration::from_secs(120);

/// What was asked, for the metrics.
#[derive(Debug, Default)]
pub struct Requests {
    list: AtomicU64,
    watch: AtomicU64,
    get: AtomicU64,
    patch: AtomicU64,
    create: AtomicU64,
}

impl Requests {
    /// Each verb and how often it was used.
    pub fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("list", &self.list),
            ("watch", &self.watch),
            ("get", &self.get),
            ("patch", &self.patch),
            ("create", &self.create),
        ]
        .map(|(verb, count)| (verb, count.load(Ordering::Relaxed)))
    }
}

/// The API server.
pub struct Api {
    client: Client,
    /// What was asked of it.
    pub requests: Requests,
}

impl Api {
    /// Through this client.
    pub fn new(client: Client) -> Self {
        Self { client, requests: Requests::default() }
    }

    /// All Nodes and the version of the list. `recent`: not from the server's cache, which after its restart may be
    /// older than what is known here.
    pub async fn list(&self, recent: bool) -> anyhow::Result<(Vec<Node>, String)> {
        let start = if recent { "" } else { "&resourceVersion=0" };
        let mut query = format!("limit={PAGE}{start}");
        let mut items = Vec::new();
        loop {
            let page = self.page(&format!("{NODES}?{query}"), "application/json").await?;
            items.extend(page.items);
            if page.rest.is_empty() {
                return Ok((items, page.version));
            }
            query = format!("limit={PAGE}&continue={}", page.rest);
        }
    }

    /// The metadata of all Nodes, at least as new as `version`.
    pub async fn list_metadata(&self, version: &str) -> anyhow::Result<(Vec<Metadata>, String)> {
        let path = format!("{NODES}?resourceVersion={version}&resourceVersionMatch=NotOlderThan");
        let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let page = self.page(&path, accept).await?;
        Ok((page.items.into_iter().map(|Partial { metadata }| metadata).collect(), page.version))
    }

    async fn page<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        accept: &str,
    ) -> anyhow::Result<Page<T>> {
        self.requests.list.fetch_add(1, Ordering::Relaxed);
        let request = Request::get(path).header(ACCEPT, accept).body(Vec::new())?;
        let read = async {
            let body = self.client.request_stream(request).await?;
            let reader = SyncIoBridge::new(body.compat());
            tokio::task::spawn_blocking(move || read_list(reader)).await?
        };
        timeout(LIST, read).await.with_context(|| format!("no whole list within {} s", LIST.as_secs()))?
    }

    /// What happens to Nodes after `version`, as far as their metadata tells, through a `client` of the caller's
    /// runtime. It ends after `seconds`.
    pub async fn watch(&self, client: &Client, version: &str, seconds: u64) -> anyhow::Result<Events> {
        self.requests.watch.fetch_add(1, Ordering::Relaxed);
        let path = format!(
            "{NODES}?watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}"
        );
        let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        // Kubernetes 1.37 compresses each event of a watch by itself, of which only the first would be read.
        let request = Request::get(path).header(ACCEPT, accept).header(ACCEPT_ENCODING, "identity");
        Ok(Events::new(in_time(client.request_stream(request.body(Vec::new())?)).await?))
    }

    /// One Node, at least as new as `version`; `None` if there is none.
    pub async fn get(&self, name: &str, version: u64) -> anyhow::Result<Option<Node>> {
        self.requests.get.fetch_add(1, Ordering::Relaxed);
        let request = Request::get(format!("{NODES}/{name}?resourceVersion={version}")).body(Vec::new())?;
        match in_time(self.client.request_text(request)).await {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the own Node carry these annotations of ours and no others of ours (server-side apply). Where
    /// somebody else wrote one of them since, that is a conflict, unless `force`. The UID makes sure that no other
    /// Node of this name is meant, and that none is created.
    pub async fn apply(
        &self,
        name: &str,
        uid: &str,
        annotations: &[(String, String)],
        force: bool,
    ) -> anyhow::Result<Node> {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let body = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "uid": uid, "annotations": annotations},
        });
        let query = format!("fieldManager={FIELD_MANAGER}&force={force}");
        self.patch(name, &query, "application/apply-patch+yaml", &body).await
    }

    /// Sets annotations of the own Node, or removes those without a value, whoever owns them. The UID makes sure
    /// that no other Node of this name is meant.
    pub async fn merge(
        &self,
        name: &str,
        uid: &str,
        annotations: &[(String, Option<String>)],
    ) -> anyhow::Result<Node> {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let body = json!({"metadata": {"uid": uid, "annotations": annotations}});
        let query = format!("fieldManager={FIELD_MANAGER}");
        self.patch(name, &query, "application/merge-patch+json", &body).await
    }

    /// Takes the startup taint off the own Node, where it stands at these places of the list, and leaves all others
    /// as they are: if the list is another by now, the server refuses. (To a strategic merge patch, taints are one
    /// value.)
    pub async fn untaint(&self, name: &str, uid: &str, places: &[usize]) -> anyhow::Result<Node> {
        let uid = std::iter::once(json!({"op": "test", "path": "/metadata/uid", "value": uid}));
        let tests = places.iter().map(
            |place| json!({"op": "test", "path": format!("/spec/taints/{place}/key"), "value": NOT_READY}),
        );
        // From the end, so that the places before stay what they are.
        let removals =
            places.iter().rev().map(|place| json!({"op": "remove", "path": format!("/spec/taints/{place}")}));
        let body = uid.chain(tests).chain(removals).collect();
        let query = format!("fieldManager={FIELD_MANAGER}");
        self.patch(name, &query, "application/json-patch+json", &body).await
    }

    async fn patch(
        &self,
        name: &str,
        query: &str,
        kind: &str,
        body: &serde_json::Value,
    ) -> anyhow::Result<Node> {
        self.requests.patch.fetch_add(1, Ordering::Relaxed);
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(format!("{NODES}/{name}?{query}"))
            .header(CONTENT_TYPE, kind)
            .body(serde_json::to_vec(body)?)?;
        let text = in_time(self.client.request_text(request)).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Creates an Event. That one of this name stands there already is as good.
    pub async fn create(&self, event: &Event) -> anyhow::Result<()> {
        match self.try_create(event).await {
            // Before 1.21, servers want what has no namespace to have the Event's. Later it would hide the Event
            // from `kubectl describe node`.
            Err(error) if code(&error) == Some(422) => {
                let mut event = event.clone();
                if let Some(regarding) = &mut event.regarding {
                    regarding.namespace.clone_from(&event.metadata.namespace);
                }
                self.try_create(&event).await
            }
            result => result,
        }
    }

    async fn try_create(&self, event: &Event) -> anyhow::Result<()> {
        self.requests.create.fetch_add(1, Ordering::Relaxed);
        let request = Request::post(EVENTS)
            .header(CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(event)?)?;
        match in_time(self.client.request_text(request)).await {
            Err(error) if code(&error) != Some(409) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The HTTP status that the server answered with, if it answered.
pub fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// Whether somebody else owns a field that was to be applied. Other conflicts have the same code: that the Node of this
/// UID is gone, for one.
pub fn is_owned(error: &anyhow::Error) -> bool {
    let Some(kube::Error::Api(status)) = error.downcast_ref() else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 409 && causes.any(|cause| cause.reason == "FieldManagerConflict")
}

/// Whether the same request may succeed later: the server did not answer, or not to the request.
pub fn is_passing(error: &anyhow::Error) -> bool {
    code(error).is_none_or(|code| matches!(code, 401 | 408 | 429 | 500..))
}

/// Whether the server says that this node knows of a version to come: its data were restored from a backup. Not any
/// 504: gateways and busy servers answer with that, too.
pub fn is_ahead(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status))
        if status.code == 504 && status.message.contains("Too large resource version"))
}

async fn in_time<T>(answer: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    let answer = timeout(ANSWER, answer).await;
    Ok(answer.with_context(|| format!("no answer within {} s", ANSWER.as_secs()))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As servers word it.
    fn refused(status: serde_json::Value) -> anyhow::Error {
        let status = serde_json::from_value(status).unwrap();
        anyhow::Error::from(kube::Error::Api(status))
    }

    #[test]
    fn only_a_field_of_another_manager_is_owned() {
        let owned = json!({"status": "Failure", "reason": "Conflict", "code": 409,
            "message": "Apply failed with 1 conflict: conflict with \"kubectl\" using v1: .metadata.annotations.x",
            "details": {"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"kubectl\"",
                "field": ".metadata.annotations.x"}]}});
        let gone = json!({"status": "Failure", "reason": "Conflict", "code": 409,
            "message": "Operation cannot be fulfilled on nodes \"a\": StorageError: invalid object, Code: 4, Key: \
                /registry/minions/a: Precondition failed: UID in precondition: u, UID in object meta: v",
            "details": {"name": "a", "kind": "nodes"}});
        assert!(is_owned(&refused(owned)));
        assert!(!is_owned(&refused(gone)));
        assert!(!is_owned(&anyhow::anyhow!("no answer")));
    }

    #[test]
    fn what_the_server_refuses_for_good_is_not_asked_again() {
        let passes = |code: u16| {
            is_passing(&refused(json!({"status": "Failure", "reason": "", "message": "", "code": code})))
        };
        assert!([401, 429, 500, 503].into_iter().all(passes) && is_passing(&anyhow::anyhow!("no answer")));
        assert!(![400, 403, 404, 422].into_iter().any(passes));
    }
}
