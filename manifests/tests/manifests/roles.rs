//! Who may do what: exactly this.

use serde_json::{Value, json};

use crate::kustomize::{build, build_with, object, objects};

#[test]
fn roles_allow_exactly_what_is_documented() {
    let nodes = |verbs: &[&str]| json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": verbs });
    let request = json!({ "apiGroups": ["warren.internal"], "resources": ["requests"], "verbs": ["set"] });
    let events = json!({ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"] });
    let roles = [
        ("ClusterRole", "warren-daemon", json!([nodes(&["get", "list", "watch", "patch"])])),
        ("ClusterRole", "warren-operator", json!([nodes(&["get", "list", "watch", "patch"]), request])),
        ("ClusterRole", "warren-auditor", json!([nodes(&["get", "list", "watch"])])),
        ("Role", "warren-daemon", json!([events])),
    ];
    let everything =
        build_with(&["admission", "monitoring", "userspace", "permissive", "strict", "withdraw"]);
    for objects in [objects(&build("base")), objects(&everything)] {
        for (kind, name, rules) in &roles {
            assert_eq!(&object(&objects, kind, name)["rules"], rules, "{kind} {name}");
        }
        let is_role = |object: &&Value| object["kind"].as_str().unwrap().ends_with("Role");
        let all: Vec<_> = objects.iter().filter(is_role).collect();
        assert_eq!(all.len(), roles.len(), "a role that this test does not know");
        assert!(all.iter().all(|role| role.get("aggregationRule").is_none()));
        let text = all.iter().map(|role| role["rules"].to_string()).collect::<String>();
        assert!(!text.contains('*'), "no wildcards: {text}");
    }
}

#[test]
fn each_role_is_bound_to_its_own_service_account() {
    let objects = objects(&build("base"));
    let bindings: Vec<_> =
        objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding")).collect();
    assert_eq!(bindings.len(), 4);
    for binding in bindings {
        let role = binding["roleRef"]["name"].as_str().unwrap();
        let account = if role == "warren-daemon" { "warrend" } else { role };
        let subjects = json!([{ "kind": "ServiceAccount", "name": account, "namespace": "warren-system" }]);
        assert_eq!(binding["subjects"], subjects, "{role}");
        let kind = binding["kind"].as_str().unwrap().strip_suffix("Binding").unwrap();
        assert_eq!(binding["roleRef"]["kind"], kind, "{role}");
        object(&objects, kind, role);
        let account = object(&objects, "ServiceAccount", account);
        assert_eq!(account["automountServiceAccountToken"], false, "{role}");
    }
}
