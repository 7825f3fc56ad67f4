//! PATCH: owners, conflicts, and patches that change nothing.

use anyhow::{Context, Result, ensure};
use hyper::Request;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use warren_testkit::apiserver::fake::{NodeSpec, Outcome, Taint, Verb};

use crate::cluster::{Cluster, annotation, refused};

const NODE: &str = "node-00001";
const EPOCH: &str = "warren.internal/epoch";
const BACKEND: &str = "warren.internal/backend";

async fn apply(nodes: &Api<Node>, uid: &str, annotations: Value, force: bool) -> Result<Node, kube::Error> {
    let params = PatchParams { force, ..PatchParams::apply("warrend") };
    let body = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": uid, "annotations": annotations },
    });
    nodes.patch(NODE, &params, &Patch::Apply(body)).await
}

pub fn owners() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    let uid = &NodeSpec::numbered(1).uid;
    cluster.nodes(|nodes| async move {
        let both = || json!({ EPOCH: "0", BACKEND: "userspace" });
        let first = apply(&nodes, uid, both(), false).await?;
        ensure!(annotation(&first, EPOCH)? == "0" && first.annotations().len() == 4);
        // The same once more is no change.
        let same = apply(&nodes, uid, both(), false).await?;
        ensure!(same.resource_version() == first.resource_version());
        ensure!(api.writes()[1].outcome == Outcome::Unchanged, "{:?}", api.writes());

        // Somebody writes on it by hand: a conflict that names them, until it is forced.
        api.update_annotations(NODE, &[(EPOCH, Some("99"))])?;
        let status = refused(apply(&nodes, uid, both(), false).await)?;
        ensure!((status.code, status.reason.as_str()) == (409, "Conflict"), "{status:?}");
        ensure!(status.message.contains("conflict with \"kubectl-annotate\" using v1"), "{status:?}");
        let details = status.details.context("no details")?;
        ensure!(details.causes[0].field == ".metadata.annotations.warren.internal/epoch", "{details:?}");
        let forced = apply(&nodes, uid, both(), true).await?;
        ensure!(annotation(&forced, EPOCH)? == "0");
        ensure!(refused(apply(&nodes, uid, json!({ EPOCH: "0", BACKEND: 1 }), false).await)?.code == 400);

        // What is removed by hand is nobody's, so there is no conflict in putting it back.
        api.update_annotations(NODE, &[(EPOCH, None)])?;
        ensure!(api.annotation(NODE, EPOCH).is_none());
        apply(&nodes, uid, both(), false).await?;
        ensure!(api.annotation(NODE, EPOCH).as_deref() == Some("0"));

        // What is no longer applied goes; what others own stays.
        apply(&nodes, uid, json!({ BACKEND: "userspace" }), false).await?;
        ensure!(api.annotation(NODE, EPOCH).is_none() && api.annotation(NODE, BACKEND).is_some());
        let last = apply(&nodes, uid, json!({}), false).await?;
        ensure!(last.annotations().len() == 2, "{:?}", last.annotations());
        let managers = |node: &Node| -> Vec<String> {
            node.managed_fields().iter().filter_map(|entry| entry.manager.clone()).collect()
        };
        ensure!(
            !managers(&last).contains(&"warrend".to_owned())
                && managers(&forced).contains(&"warrend".to_owned())
        );

        // Another UID is another Node.
        let status = refused(apply(&nodes, "another", both(), true).await)?;
        ensure!(status.code == 422 && status.message.contains("metadata.uid"), "{status:?}");
        api.delete_node(NODE)?;
        let status = refused(apply(&nodes, uid, both(), true).await)?;
        ensure!(status.code == 409 && status.message.contains("no existing object was found"), "{status:?}");
        Ok(())
    })
}

pub fn announced_before() -> Result<()> {
    let cluster = Cluster::new(0)?;
    let api = &cluster.api;
    let annotations = [(EPOCH.to_owned(), "4".to_owned())].into();
    api.add_node(&NodeSpec { annotations, ..NodeSpec::numbered(1) })?;
    let uid = &NodeSpec::numbered(1).uid;
    cluster.nodes(|nodes| async move {
        // A daemon that comes back finds all as it left it, and may change what is its own.
        apply(&nodes, uid, json!({ EPOCH: "4" }), false).await?;
        ensure!(api.writes()[0].outcome == Outcome::Unchanged, "{:?}", api.writes());
        apply(&nodes, uid, json!({ EPOCH: "5" }), false).await?;
        ensure!(api.annotation(NODE, EPOCH).as_deref() == Some("5"));
        Ok(())
    })
}

pub fn events() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.client(|client| async move {
        let post = |event: &Value| {
            let body = event.to_string().into_bytes();
            let request = Request::post("/apis/events.k8s.io/v1/namespaces/default/events")
                .header("content-type", "application/json")
                .body(body);
            let client = client.clone();
            async move { client.request::<Value>(request.expect("a request")).await }
        };
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "node-00001.1", "namespace": "default" },
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "warren.internal/warrend",
            "reportingInstance": "node-00001", "action": "Quarantine", "reason": "DuplicateKey", "type": "Warning",
            "regarding": { "kind": "Node", "name": "node-00001", "uid": "node-00001" }, "note": "two nodes, one key",
        });
        post(&event).await?;
        ensure!(api.events() == [event.clone()] && api.count(Verb::PostEvent).requests == 1);
        event["action"] = json!("");
        let status = refused(post(&event).await)?;
        ensure!(status.code == 422 && status.message.contains("action"), "{status:?}");
        ensure!(api.events().len() == 1);
        Ok(())
    })
}

pub fn taints() -> Result<()> {
    let cluster = Cluster::new(0)?;
    let api = &cluster.api;
    let taint =
        |key: &str| Taint { key: key.to_owned(), value: String::new(), effect: "NoSchedule".to_owned() };
    let taints = vec![taint("warren.internal/not-ready"), taint("other")];
    api.add_node(&NodeSpec { taints, ..NodeSpec::numbered(1) })?;
    cluster.nodes(|nodes| async move {
        let params = PatchParams { field_manager: Some("warrend".to_owned()), ..PatchParams::default() };
        let strategic = Patch::Strategic(json!({
            "spec": { "taints": [{ "$patch": "delete", "key": "warren.internal/not-ready" }] },
        }));
        let status = refused(nodes.patch(NODE, &params, &strategic).await)?;
        ensure!(status.code == 422 && status.message.contains("effect"), "{status:?}");
        let operations = json!([
            { "op": "test", "path": "/spec/taints/0/key", "value": "warren.internal/not-ready" },
            { "op": "remove", "path": "/spec/taints/0" },
        ]);
        let client = nodes.clone().into_client();
        let send = || {
            let path = format!("/api/v1/nodes/{NODE}?fieldManager=warrend");
            let request = Request::patch(path).header("content-type", "application/json-patch+json");
            let request = request.body(operations.to_string().into_bytes()).expect("a sound request");
            client.request::<Node>(request)
        };
        let node = send().await?;
        let taints = node.spec.and_then(|spec| spec.taints).context("no taints are left")?;
        ensure!(taints.len() == 1 && taints[0].key == "other", "{taints:?}");
        ensure!(refused(send().await)?.code == 422, "the test in it fails now");
        let outcomes: Vec<Outcome> = api.writes().into_iter().map(|write| write.outcome).collect();
        ensure!(
            matches!(outcomes[..], [Outcome::Refused(422), Outcome::Changed(_), Outcome::Refused(422)]),
            "{outcomes:?}"
        );
        let merge = Patch::Merge(json!({ "metadata": { "annotations": { EPOCH: "3", "x": null } } }));
        ensure!(annotation(&nodes.patch(NODE, &params, &merge).await?, EPOCH)? == "3");
        ensure!(refused(nodes.patch("nobody", &params, &merge).await)?.code == 404);
        let stale =
            Patch::Merge(json!({ "metadata": { "resourceVersion": "1", "annotations": { EPOCH: "4" } } }));
        let status = refused(nodes.patch(NODE, &params, &stale).await)?;
        ensure!((status.code, status.reason.as_str()) == (409, "Conflict"), "{status:?}");
        Ok(())
    })
}
