//! What operators may change: requests, and nothing else.

use serde_json::{Value, json};

use super::*;
use crate::admission::request::User;

const OPERATOR_ANNOTATIONS: Expected = Refused("an operator of Warren changes no annotations but");
const OPERATOR_METADATA: Expected = Refused("an operator of Warren changes nothing in a Node's metadata");
const OPERATOR_REST: Expected = Refused("an operator of Warren changes neither");

/// What operators may change, and that they change nothing else.
pub fn cases() -> Vec<Case> {
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
            let mut only = bare_node();
            only["metadata"]["annotations"] = json!({ key: "1" });
            let removed = Request::update(user.clone(), &only, set("/metadata/annotations", Value::Null));
            cases.push(case(&format!("{who} removes {key}, the only annotation"), removed, Allowed));
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
    cases.extend(bookkeeping("an operator", || {
        Request::update(operator(), &node(), annotate("warren.internal/rotate", "2"))
    }));
    cases
}
