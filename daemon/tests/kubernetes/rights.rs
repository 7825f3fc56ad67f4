//! RBAC as shipped: each call that somebody needs is allowed, each of a table of others is refused.
//!
//! The calls are dry runs where they would change something: authorization and admission come before.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use warren_testkit::apiserver::real::{Client, Response};
use warren_testkit::lab::{Families, Lab, Plan, STARTUP_TAINT};

use crate::cluster::two_nodes;

/// One call: method, path, content type of the body, body.
struct Call(&'static str, &'static str, &'static str, fn() -> Value);

/// No body.
const NONE: &str = "";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";

const fn call(method: &'static str, path: &'static str) -> Call {
    Call(method, path, NONE, || Value::Null)
}

/// Looking at nodes: all that an auditor needs.
const LOOK: &[Call] = &[
    call("GET", "/api/v1/nodes?resourceVersion=0&limit=500"),
    call("GET", "/api/v1/nodes/node-1?resourceVersion=0"),
    call("GET", "/api/v1/nodes?watch=1&allowWatchBookmarks=true&timeoutSeconds=1"),
];

/// Changing the metadata, or the taints, of a Node.
const CHANGE: &[Call] = &[
    Call("PATCH", "/api/v1/nodes/node-1?dryRun=All&fieldManager=warrend&force=true", APPLY, || {
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-1", "annotations": {"warren.internal/epoch": "0"}}})
    }),
    // A list of taints is replaced as a whole by every other kind of patch.
    Call("PATCH", "/api/v1/nodes/node-1?dryRun=All", JSON_PATCH, || {
        json!([{"op": "test", "path": "/spec/taints/0/key", "value": STARTUP_TAINT},
            {"op": "remove", "path": "/spec/taints/0"}])
    }),
    Call(
        "PATCH",
        "/api/v1/nodes/node-1?dryRun=All",
        MERGE,
        || json!({"metadata": {"annotations": {"warren.internal/rotate": "1"}}}),
    ),
];

/// Telling of what happened.
const TELL: &[Call] =
    &[Call("POST", "/apis/events.k8s.io/v1/namespaces/default/events?dryRun=All", JSON, || event("default"))];

/// What nobody of Warren's may do.
const FORBIDDEN: &[Call] = &[
    // Nodes, beyond their own object.
    Call("PATCH", "/api/v1/nodes/node-1/status?dryRun=All", MERGE, || json!({"status": {}})),
    Call("PUT", "/api/v1/nodes/node-1?dryRun=All", JSON, node),
    Call("PUT", "/api/v1/nodes/node-1/status?dryRun=All", JSON, node),
    Call("POST", "/api/v1/nodes?dryRun=All", JSON, || json!({"metadata": {"name": "node-9"}})),
    call("DELETE", "/api/v1/nodes/node-1?dryRun=All"),
    call("DELETE", "/api/v1/nodes?dryRun=All"),
    call("GET", "/api/v1/nodes/node-1/proxy/healthz"),
    call("GET", "/api/v1/nodes/node-1/status"),
    // What others keep in the cluster.
    call("GET", "/api/v1/secrets"),
    call("GET", "/api/v1/namespaces/kube-system/secrets"),
    call("GET", "/api/v1/namespaces/warren-system/secrets"),
    call("GET", "/api/v1/namespaces/warren-system/secrets/any"),
    call("GET", "/api/v1/pods"),
    call("GET", "/api/v1/namespaces/warren-system/pods"),
    call("GET", "/api/v1/namespaces/warren-system/pods/warren-node-1"),
    call("GET", "/api/v1/configmaps"),
    call("GET", "/api/v1/namespaces/warren-system/configmaps"),
    call("GET", "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"),
    call("GET", "/api/v1/services"),
    call("GET", "/api/v1/endpoints"),
    call("GET", "/api/v1/namespaces"),
    call("GET", "/api/v1/namespaces/warren-system"),
    call("GET", "/api/v1/serviceaccounts"),
    call("GET", "/api/v1/persistentvolumes"),
    call("GET", "/apis/apps/v1/daemonsets"),
    call("GET", "/apis/networking.k8s.io/v1/networkpolicies"),
    call("GET", "/apis/coordination.k8s.io/v1/leases"),
    call("GET", "/apis/storage.k8s.io/v1/csinodes"),
    // Running something.
    Call("POST", "/api/v1/namespaces/warren-system/pods?dryRun=All", JSON, || {
        json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "warrend",
            "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]}})
    }),
    call("DELETE", "/api/v1/namespaces/warren-system/pods/warren-node-1?dryRun=All"),
    call("POST", "/api/v1/namespaces/warren-system/pods/warren-node-1/exec?command=id"),
    Call(
        "POST",
        "/api/v1/namespaces/default/configmaps?dryRun=All",
        JSON,
        || json!({"metadata": {"name": "c"}}),
    ),
    // Reading, changing or hiding what was told; telling elsewhere.
    call("GET", "/apis/events.k8s.io/v1/events"),
    call("GET", "/apis/events.k8s.io/v1/namespaces/default/events"),
    call("GET", "/apis/events.k8s.io/v1/namespaces/default/events/any"),
    Call("PATCH", "/apis/events.k8s.io/v1/namespaces/default/events/any?dryRun=All", MERGE, || json!({})),
    call("DELETE", "/apis/events.k8s.io/v1/namespaces/default/events/any?dryRun=All"),
    call("DELETE", "/apis/events.k8s.io/v1/namespaces/default/events?dryRun=All"),
    Call("POST", "/apis/events.k8s.io/v1/namespaces/kube-system/events?dryRun=All", JSON, || {
        event("kube-system")
    }),
    Call(
        "POST",
        "/api/v1/namespaces/default/events?dryRun=All",
        JSON,
        || json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Node", "name": "node-1", "namespace": "default"}}),
    ),
    // More rights, and other people's.
    Call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", JSON, || json!({"spec": {"token": "t"}})),
    Call(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        JSON,
        || json!({"spec": {"user": "u", "nonResourceAttributes": {"path": "/", "verb": "get"}}}),
    ),
    Call("POST", "/api/v1/namespaces/warren-system/serviceaccounts/warrend/token", JSON, token_request),
    Call(
        "POST",
        "/api/v1/namespaces/warren-system/serviceaccounts/warren-operator/token",
        JSON,
        token_request,
    ),
    Call("POST", "/api/v1/namespaces/kube-system/serviceaccounts/default/token", JSON, token_request),
    call("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    Call("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/warren-daemon?dryRun=All", MERGE, || {
        json!({})
    }),
    Call("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings?dryRun=All", JSON, || {
        json!({"metadata": {"name": "b"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "warrend", "namespace": "warren-system"}]})
    }),
    Call(
        "POST",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests?dryRun=All",
        JSON,
        || json!({"metadata": {"name": "c"}, "spec": {"request": "", "signerName": "s/s", "usages": ["any"]}}),
    ),
    call("GET", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
    call("GET", "/logs/"),
    call("GET", "/metrics"),
];

pub fn of_the_daemon() -> Result<()> {
    in_cluster(|lab| {
        // Each daemon's own token, as it is bound to its Pod: their rights do not differ.
        for number in [1, 2] {
            let token = lab.daemon_token(number)?;
            judge(lab, &token, &[LOOK, CHANGE, TELL], &[FORBIDDEN])?;
        }
        Ok(())
    })
}

pub fn of_the_operator() -> Result<()> {
    in_cluster(|lab| judge(lab, &lab.token_of("warren-operator")?, &[LOOK, CHANGE], &[TELL, FORBIDDEN]))
}

pub fn of_the_auditor() -> Result<()> {
    in_cluster(|lab| judge(lab, &lab.token_of("warren-auditor")?, &[LOOK], &[CHANGE, TELL, FORBIDDEN]))
}

fn in_cluster(scenario: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    // Servers before 1.29 refuse to apply to a Node that has two InternalIPs, whoever asks (kubernetes#121896).
    let lab = Lab::new(Plan { pods: 0, underlay: Families::V4, ..two_nodes() })?;
    // Else a refused call might be one that the server does not even know.
    let admin = lab.api().client();
    for call in all(&[LOOK, CHANGE, TELL, FORBIDDEN]) {
        let answer = call.make(&admin)?;
        ensure!(!matches!(answer.status, 401 | 403), "the administrator's {call}: {}", answer.text);
    }
    // And else the calls might be allowed to everybody.
    let nobody = lab.api().client_with("nobody's");
    for call in all(&[LOOK, CHANGE, TELL]) {
        let answer = call.make(&nobody)?;
        ensure!(answer.status == 401, "{call} with a bad token should get a 401: {}", answer.text);
    }
    scenario(&lab)
}

/// Tries every call with somebody's token.
fn judge(lab: &Lab, token: &str, allowed: &[&[Call]], forbidden: &[&[Call]]) -> Result<()> {
    let client = lab.api().client_with(token);
    for call in all(allowed) {
        call.make(&client)?.ok().context("a call that is needed")?;
    }
    for call in all(forbidden) {
        let answer = call.make(&client)?;
        ensure!(answer.status == 403, "{call} should get a 403: {}", answer.text);
    }
    let version = lab.api().version()?;
    println!("{} calls allowed, {} refused by {version}", all(allowed).count(), all(forbidden).count());
    Ok(())
}

fn all<'a>(tables: &'a [&'a [Call]]) -> impl Iterator<Item = &'a Call> {
    tables.iter().copied().flatten()
}

impl Call {
    fn make(&self, client: &Client<'_>) -> Result<Response> {
        let Self(method, path, content_type, body) = self;
        let body = body();
        let body = (*content_type != NONE).then_some((*content_type, &body));
        client.request(method, path, body).with_context(|| self.to_string())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(method, path, ..) = self;
        write!(f, "{method} {path}")
    }
}

fn node() -> Value {
    json!({"metadata": {"name": "node-1"}})
}

fn event(namespace: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": namespace},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "warren.internal/warrend",
        "reportingInstance": "node-1",
        "action": "Test",
        "reason": "Test",
        "type": "Normal",
        // Without a namespace, servers before 1.21 want Events about Nodes to be in kube-system.
        "regarding": {"kind": "Node", "name": "node-1", "apiVersion": "v1", "namespace": namespace},
    })
}

fn token_request() -> Value {
    json!({"spec": {"expirationSeconds": 600}})
}
