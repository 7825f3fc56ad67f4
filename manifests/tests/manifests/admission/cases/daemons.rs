//! What daemons may change: on their own Nodes what they announce, and the startup taint.

use serde_json::{Value, json};

use super::*;
use crate::admission::request::User;

const OTHER_NODE: Expected = Refused("the Node it runs on and no other");
const ANNOTATIONS: Expected = Refused("a daemon of Warren changes no annotations but");
const METADATA: Expected = Refused("a daemon of Warren changes nothing in a Node's metadata");
const TAINTS: Expected = Refused("a daemon of Warren changes no taints but");
const SPEC: Expected = Refused("a daemon of Warren changes nothing in a Node's spec");
const STATUS: Expected = Refused("a daemon of Warren does not change a Node's status");
const CREATES: Expected = Refused("neither creates nor deletes");

/// What a daemon may and may not change, tried on the Node and on its status.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let changes: Vec<(&str, Change, Expected)> = vec![
        ("nothing", Box::new(|_| {}), Allowed),
        ("its announcement", Box::new(annotate("warren.internal/announcement", "{\"version\":2}")), Allowed),
        ("its key", Box::new(annotate("warren.internal/public-key", "BBBB")), Allowed),
        ("its epoch", Box::new(annotate("warren.internal/epoch", "1")), Allowed),
        ("its backend", Box::new(annotate("warren.internal/backend", "kernel")), Allowed),
        ("its announcement, taking it back", Box::new(unannotate("warren.internal/announcement")), Allowed),
        ("a foreign annotation", Box::new(annotate("node.alpha.kubernetes.io/ttl", "9")), ANNOTATIONS),
        ("a foreign annotation, adding it", Box::new(annotate("example.com/a", "b")), ANNOTATIONS),
        (
            "a foreign annotation, removing it",
            Box::new(unannotate("node.alpha.kubernetes.io/ttl")),
            ANNOTATIONS,
        ),
        ("a key of no meaning", Box::new(annotate("warren.internal/x", "1")), ANNOTATIONS),
        ("a key in other letters", Box::new(annotate("warren.internal/Epoch", "1")), ANNOTATIONS),
        ("a longer key", Box::new(annotate("warren.internal/epoch-2", "1")), ANNOTATIONS),
        ("a longer domain", Box::new(annotate("x.warren.internal/epoch", "1")), ANNOTATIONS),
        ("a request", Box::new(annotate("warren.internal/rotate", "2")), ANNOTATIONS),
        ("a request, removing it", Box::new(unannotate("warren.internal/rotate")), ANNOTATIONS),
        ("a request, adding it", Box::new(annotate("warren.internal/quarantine", "true")), ANNOTATIONS),
        ("all annotations", Box::new(set("/metadata/annotations", Value::Null)), ANNOTATIONS),
        ("all annotations, emptying them", Box::new(set("/metadata/annotations", json!({}))), ANNOTATIONS),
        ("a label", Box::new(set("/metadata/labels/pool", json!("secret"))), METADATA),
        (
            "a label, removing it",
            Box::new(|node| {
                drop(node["metadata"]["labels"].as_object_mut().unwrap().remove("kubernetes.io/os"))
            }),
            METADATA,
        ),
        ("all labels", Box::new(set("/metadata/labels", Value::Null)), METADATA),
        ("finalizers", Box::new(set("/metadata/finalizers", Value::Null)), METADATA),
        (
            "finalizers, adding one",
            Box::new(set("/metadata/finalizers", json!(["example.com/keep", "a.b/c"]))),
            METADATA,
        ),
        (
            "owners",
            Box::new(set("/metadata/ownerReferences", json!([{ "kind": "Pod", "name": "p" }]))),
            METADATA,
        ),
        ("the UID", Box::new(set("/metadata/uid", json!("another"))), METADATA),
        (
            "a field of metadata that is yet to be invented",
            Box::new(set("/metadata/future", json!(1))),
            METADATA,
        ),
        ("its generation", Box::new(set("/metadata/generation", json!(2))), Allowed),
        (
            "the startup taint, removing it",
            Box::new(|node| drop(node["spec"]["taints"].as_array_mut().unwrap().remove(1))),
            Allowed,
        ),
        (
            "another taint, removing it",
            Box::new(|node| drop(node["spec"]["taints"].as_array_mut().unwrap().remove(0))),
            TAINTS,
        ),
        ("all taints", Box::new(set("/spec/taints", Value::Null)), TAINTS),
        ("all taints, emptying them", Box::new(set("/spec/taints", json!([]))), TAINTS),
        ("taints' order", Box::new(|node| node["spec"]["taints"].as_array_mut().unwrap().swap(0, 2)), TAINTS),
        ("a taint's value", Box::new(set("/spec/taints/2/value", json!("b"))), TAINTS),
        ("the startup taint's effect", Box::new(set("/spec/taints/1/effect", json!("NoExecute"))), TAINTS),
        (
            "a second startup taint",
            Box::new(|node| {
                node["spec"]["taints"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "key": "warren.internal/not-ready", "effect": "NoExecute" }))
            }),
            TAINTS,
        ),
        (
            "a new taint",
            Box::new(|node| {
                node["spec"]["taints"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "key": "a", "effect": "NoExecute" }))
            }),
            TAINTS,
        ),
        (
            "the startup taint under another name",
            Box::new(set("/spec/taints/1/key", json!("warren.internal/ready"))),
            TAINTS,
        ),
        ("unschedulable", Box::new(set("/spec/unschedulable", json!(true))), SPEC),
        ("its pod CIDRs", Box::new(set("/spec/podCIDRs", json!(["10.244.0.0/16"]))), SPEC),
        ("its pod CIDR, removing it", Box::new(set("/spec/podCIDR", Value::Null)), SPEC),
        ("its provider's name", Box::new(set("/spec/providerID", json!("cloud://n2"))), SPEC),
        ("a field of the spec that is yet to be invented", Box::new(set("/spec/future", json!("x"))), SPEC),
        ("its addresses", Box::new(set("/status/addresses/0/address", json!("192.0.2.66"))), STATUS),
        ("a condition", Box::new(set("/status/conditions/0/status", json!("False"))), STATUS),
        ("its capacity", Box::new(set("/status/capacity", Value::Null)), STATUS),
        ("its whole status", Box::new(set("/status", Value::Null)), STATUS),
        ("a part of Nodes that is yet to be invented", Box::new(set("/future", json!({}))), STATUS),
        (
            "its announcement, and a label with it",
            Box::new(|node| {
                annotate("warren.internal/epoch", "1")(node);
                set("/metadata/labels/pool", json!("secret"))(node);
            }),
            METADATA,
        ),
    ];
    for (what, change, expected) in changes {
        let request = Request::update(User::daemon("n1"), &node(), &change);
        cases.push(case(&format!("a daemon changes {what}"), request, expected));
        let request = Request::update_status(User::daemon("n1"), &node(), &change);
        cases.push(case(&format!("a daemon changes {what}, by way of the status"), request, expected));
    }
    let announce = annotate("warren.internal/announcement", "{}");
    let first = |node: &mut Value| node["metadata"]["annotations"] = json!({ "warren.internal/epoch": "0" });
    let bound = |words: Value| User::daemon("n1").extra(words);
    let node_name = |value: Value| bound(json!({ "authentication.kubernetes.io/node-name": value }));
    let update = |user: User| Request::update(user, &node(), &announce);
    cases.extend([
        case(
            "a daemon's first announcement",
            Request::update(User::daemon("n1"), &bare_node(), first),
            Allowed,
        ),
        case(
            "a daemon withdraws everything",
            {
                let mut announced = bare_node();
                first(&mut announced);
                Request::update(User::daemon("n1"), &announced, set("/metadata/annotations", Value::Null))
            },
            Allowed,
        ),
        case(
            "a daemon removes the only taint",
            {
                let mut tainted = bare_node();
                tainted["spec"]["taints"] =
                    json!([{ "key": "warren.internal/not-ready", "effect": "NoSchedule" }]);
                Request::update(User::daemon("n1"), &tainted, set("/spec/taints", Value::Null))
            },
            Allowed,
        ),
        case("a daemon announces on another's Node", update(User::daemon("n2")), OTHER_NODE),
        case(
            "a daemon frees another's Node of the startup taint",
            Request::update(User::daemon("n2"), &node(), |node| {
                node["spec"]["taints"].as_array_mut().unwrap().remove(1);
            }),
            OTHER_NODE,
        ),
        case("a daemon's token without words", update(bound(Value::Null)), OTHER_NODE),
        case("a daemon's token bound to no node", update(bound(json!({ "a": ["n1"] }))), OTHER_NODE),
        case("a daemon's token with an empty node", update(node_name(json!([""]))), OTHER_NODE),
        case("a daemon's token with no nodes", update(node_name(json!([]))), OTHER_NODE),
        case("a daemon's token with two nodes", update(node_name(json!(["n1", "n2"]))), OTHER_NODE),
        case("a daemon's token for a node of a longer name", update(node_name(json!(["n11"]))), OTHER_NODE),
        case("a daemon creates its Node", Request::create(User::daemon("n1"), &bare_node()), CREATES),
        case(
            "a daemon creates a Node that is announced",
            Request::create(User::daemon("n1"), &node()),
            CREATES,
        ),
        case("a daemon deletes its Node", Request::delete(User::daemon("n1"), &bare_node()), CREATES),
    ]);
    cases.extend(bookkeeping("a daemon", || update(User::daemon("n1"))));
    cases
}
