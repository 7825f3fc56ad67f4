//! Who tries what, and whether it is allowed.

use serde_json::{Value, json};

use super::request::{Request, User};

/// A request and its verdict.
pub struct Case {
    pub name: String,
    pub request: Request,
    pub expected: Expected,
}

/// A verdict.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    Allowed,
    /// Refused with a message that contains this.
    Refused(&'static str),
}

use Expected::{Allowed, Refused};

const OTHER_NODE: Expected = Refused("the Node it runs on and no other");
const ANNOTATIONS: Expected = Refused("a daemon of Warren changes no annotations but");
const METADATA: Expected = Refused("a daemon of Warren changes nothing in a Node's metadata");
const TAINTS: Expected = Refused("a daemon of Warren changes no taints but");
const SPEC: Expected = Refused("a daemon of Warren changes nothing in a Node's spec");
const STATUS: Expected = Refused("a daemon of Warren does not change a Node's status");
const CREATES: Expected = Refused("neither creates nor deletes");
const NOT_THEIRS: Expected = Refused("only a node's own daemon writes");
const NO_OPERATOR: Expected = Refused("only operators of Warren");
const OPERATOR_ANNOTATIONS: Expected = Refused("an operator of Warren changes no annotations but");
const OPERATOR_METADATA: Expected = Refused("an operator of Warren changes nothing in a Node's metadata");
const OPERATOR_REST: Expected = Refused("an operator of Warren changes neither");

/// All cases.
pub fn cases() -> Vec<Case> {
    [daemons(), annotations(), operators()].into_iter().flatten().collect()
}

/// A Node as a kubelet, controllers and a daemon made it.
fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "n1",
            "uid": "1f5d3c52-6f0e-4a3b-9a53-0d6c1c5a8a10",
            "resourceVersion": "4711",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux" },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "warren.internal/announcement": "{\"version\":1}",
                "warren.internal/public-key": "AAAA",
                "warren.internal/epoch": "0",
                "warren.internal/backend": "userspace",
                "warren.internal/rotate": "1",
            },
            "finalizers": ["example.com/keep"],
            "managedFields": [{ "manager": "kubelet", "operation": "Update" }],
        },
        "spec": {
            "podCIDR": "10.244.1.0/24",
            "podCIDRs": ["10.244.1.0/24"],
            "providerID": "cloud://n1",
            "taints": [
                { "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" },
                { "key": "warren.internal/not-ready", "effect": "NoSchedule" },
                { "key": "example.com/gpu", "value": "a", "effect": "NoExecute" },
            ],
        },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }],
            "capacity": { "cpu": "4", "memory": "16Gi" },
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z" }],
            "nodeInfo": { "kubeletVersion": "v1.36.0" },
        },
    })
}

/// A Node that nobody has written more on than he must.
fn bare_node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "n1", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {},
        "status": { "conditions": [] },
    })
}

fn annotate(key: &str, value: &str) -> impl Fn(&mut Value) {
    let pair = (key.to_owned(), json!(value));
    move |node| node["metadata"]["annotations"][&pair.0] = pair.1.clone()
}

fn unannotate(key: &str) -> impl Fn(&mut Value) {
    let key = key.to_owned();
    move |node| drop(node["metadata"]["annotations"].as_object_mut().unwrap().remove(&key))
}

/// Sets what stands at a JSON pointer; `Value::Null` removes it.
fn set(pointer: &'static str, value: Value) -> impl Fn(&mut Value) {
    move |node| {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = node.pointer_mut(parent).unwrap();
        if value.is_null() {
            drop(parent.as_object_mut().unwrap().remove(name));
        } else {
            parent[name] = value.clone();
        }
    }
}

fn case(name: &str, request: Request, expected: Expected) -> Case {
    Case { name: name.to_owned(), request, expected }
}

type Change = Box<dyn Fn(&mut Value)>;

/// What a daemon may and may not change, tried on the Node and on its status.
fn daemons() -> Vec<Case> {
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
    cases
}

/// Who else changes annotations under the prefix.
fn annotations() -> Vec<Case> {
    let kubelet = || User::new("system:node:n1").may_do("group= resource=nodes name=n1 verb=update");
    let controller = || {
        User::new("system:serviceaccount:kube-system:node-controller")
            .may_do("group= resource=nodes verb=update")
    };
    let admin = || controller().operator();
    let mut cases = vec![];
    let announcement = [
        ("warren.internal/announcement", "{}"),
        ("warren.internal/public-key", "BBBB"),
        ("warren.internal/epoch", "7"),
        ("warren.internal/backend", "none"),
        ("warren.internal/x", "1"),
        ("warren.internal/", "1"),
        ("warren.internal/rotate-2", "1"),
    ];
    let requests = [("warren.internal/rotate", "9"), ("warren.internal/quarantine", "true")];
    for (who, user) in
        [("a kubelet", kubelet()), ("a controller", controller()), ("an administrator", admin())]
    {
        let may_request = if who == "an administrator" { Allowed } else { NO_OPERATOR };
        let all = announcement.iter().map(|pair| (pair, NOT_THEIRS));
        for ((key, value), expected) in all.chain(requests.iter().map(|pair| (pair, may_request))) {
            let changed = Request::update(user.clone(), &node(), annotate(key, value));
            cases.push(case(&format!("{who} writes {key}"), changed, expected));
            let changed = Request::update_status(user.clone(), &node(), annotate(key, value));
            cases.push(case(&format!("{who} writes {key} by way of the status"), changed, expected));
            let mut with = bare_node();
            with["metadata"]["annotations"] = json!({ *key: value });
            let removed = Request::update(user.clone(), &with, set("/metadata/annotations", Value::Null));
            cases.push(case(&format!("{who} removes {key} with all annotations"), removed, expected));
            let removed = Request::update(user.clone(), &with, unannotate(key));
            cases.push(case(&format!("{who} removes {key}"), removed, expected));
            cases.push(case(
                &format!("{who} creates a Node with {key}"),
                Request::create(user.clone(), &with),
                expected,
            ));
        }
        let heartbeat = set("/status/conditions/0/lastHeartbeatTime", json!("2026-01-01T00:00:10Z"));
        let cordon = set("/spec/unschedulable", json!(true));
        cases.extend([
            case(
                &format!("{who} sends a heartbeat"),
                Request::update_status(user.clone(), &node(), heartbeat),
                Allowed,
            ),
            case(
                &format!("{who} writes another annotation"),
                Request::update(user.clone(), &node(), annotate("a", "b")),
                Allowed,
            ),
            case(
                &format!("{who} writes a similar domain"),
                Request::update(user.clone(), &node(), annotate("x.warren.internal/rotate", "b")),
                Allowed,
            ),
            case(&format!("{who} cordons"), Request::update(user.clone(), &node(), cordon), Allowed),
            case(
                &format!("{who} removes a taint"),
                Request::update(user.clone(), &node(), set("/spec/taints", Value::Null)),
                Allowed,
            ),
            case(&format!("{who} creates a Node"), Request::create(user.clone(), &bare_node()), Allowed),
            case(
                &format!("{who} annotates a bare Node"),
                Request::update(
                    user.clone(),
                    &bare_node(),
                    set("/metadata/annotations", json!({ "a": "b" })),
                ),
                Allowed,
            ),
            case(&format!("{who} deletes a Node"), Request::delete(user.clone(), &node()), Allowed),
        ]);
    }
    // A name like the daemon's is not the daemon's.
    for name in [
        "warrend",
        "system:serviceaccount:default:warrend",
        "system:serviceaccount:warren-system:warren-auditor",
    ] {
        let user = User::daemon("n1").called(name);
        let request = Request::update(user, &node(), annotate("warren.internal/epoch", "1"));
        cases.push(case(&format!("{name} announces"), request, NOT_THEIRS));
    }
    cases
}

/// What operators may change, and that they change nothing else.
fn operators() -> Vec<Case> {
    let operator = || User::new("https://id.example.com#alice").operator();
    let account = || User::new("system:serviceaccount:warren-system:warren-operator").operator();
    let mut cases = vec![];
    for (who, user) in [("an operator", operator()), ("the operators' ServiceAccount", account())] {
        for key in ["warren.internal/rotate", "warren.internal/quarantine"] {
            let set_it = Request::update(user.clone(), &node(), annotate(key, "2"));
            cases.push(case(&format!("{who} sets {key}"), set_it, Allowed));
            let mut requested = node();
            annotate(key, "1")(&mut requested);
            let removed = Request::update(user.clone(), &requested, unannotate(key));
            cases.push(case(&format!("{who} removes {key}"), removed, Allowed));
            let first = set("/metadata/annotations", json!({ key: "1" }));
            cases.push(case(
                &format!("{who} sets {key} first of all"),
                Request::update(user.clone(), &bare_node(), first),
                Allowed,
            ));
        }
        let changes: Vec<(&str, Change, Expected)> = vec![
            ("an announcement", Box::new(annotate("warren.internal/epoch", "9")), NOT_THEIRS),
            ("another annotation", Box::new(annotate("example.com/a", "b")), OPERATOR_ANNOTATIONS),
            (
                "another annotation, removing it",
                Box::new(unannotate("node.alpha.kubernetes.io/ttl")),
                OPERATOR_ANNOTATIONS,
            ),
            ("a label", Box::new(set("/metadata/labels/pool", json!("secret"))), OPERATOR_METADATA),
            (
                "finalizers, removing them",
                Box::new(set("/metadata/finalizers", Value::Null)),
                OPERATOR_METADATA,
            ),
            ("taints", Box::new(set("/spec/taints", Value::Null)), OPERATOR_REST),
            (
                "the startup taint",
                Box::new(|node| drop(node["spec"]["taints"].as_array_mut().unwrap().remove(1))),
                OPERATOR_REST,
            ),
            ("unschedulable", Box::new(set("/spec/unschedulable", json!(true))), OPERATOR_REST),
            ("addresses", Box::new(set("/status/addresses/0/address", json!("192.0.2.66"))), OPERATOR_REST),
            ("the whole status", Box::new(set("/status", Value::Null)), OPERATOR_REST),
            (
                "a request, and a label with it",
                Box::new(|node| {
                    annotate("warren.internal/rotate", "2")(node);
                    set("/metadata/labels/pool", json!("secret"))(node);
                }),
                OPERATOR_METADATA,
            ),
        ];
        for (what, change, expected) in changes {
            let request = Request::update(user.clone(), &node(), &change);
            cases.push(case(&format!("{who} changes {what}"), request, expected));
            let request = Request::update_status(user.clone(), &node(), &change);
            cases.push(case(&format!("{who} changes {what} by way of the status"), request, expected));
        }
    }
    // An administrator of this one Node is not limited to requests on it.
    let of_n1 = || operator().may_do("group= resource=nodes name=n1 verb=update");
    let of_n2 = || operator().may_do("group= resource=nodes name=n2 verb=update");
    let label = set("/metadata/labels/pool", json!("web"));
    cases.extend([
        case("an operator labels a Node he may update", Request::update(of_n1(), &node(), &label), Allowed),
        case(
            "an operator labels a Node he may not update",
            Request::update(of_n2(), &node(), &label),
            OPERATOR_METADATA,
        ),
    ]);
    cases
}
