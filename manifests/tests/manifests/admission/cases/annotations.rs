//! Who else changes annotations under the prefix: nobody, but for operators' requests.

use serde_json::{Value, json};

use super::*;
use crate::admission::request::User;

const NO_OPERATOR: Expected = Refused("only operators of Warren");

/// Who else changes annotations under the prefix.
pub fn cases() -> Vec<Case> {
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
        let mut beside = bare_node();
        beside["metadata"]["annotations"] = json!({ "a": "b", "warren.internal/epoch": "0" });
        let both = |node: &mut Value| {
            annotate("warren.internal/rotate", "2")(node);
            annotate("warren.internal/epoch", "2")(node);
        };
        for (what, change) in [
            ("changes the only one", Box::new(annotate("warren.internal/epoch", "1")) as Change),
            ("removes the only one", Box::new(unannotate("warren.internal/epoch"))),
            ("changes one and a request", Box::new(both)),
        ] {
            let request = Request::update(user.clone(), &beside, change);
            cases.push(case(&format!("{who} {what} of Warren's annotations"), request, NOT_THEIRS));
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
