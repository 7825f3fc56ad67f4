//! What kustomize makes of base and components.

use serde::Deserialize as _;
use serde_json::Value;

use crate::tools::{path, run, tool};

/// What is applied with `kubectl apply -k` of a folder of the manifests.
pub fn build(folder: &str) -> String {
    run(tool("kustomize").arg(path(folder)))
}

/// What is applied with the base and these components, in this order.
pub fn build_with(components: &[&str]) -> String {
    let overlay = tempfile::tempdir().unwrap();
    // kustomize takes no absolute paths: up to the root, and down again.
    let up = "../".repeat(overlay.path().canonicalize().unwrap().components().count() - 1);
    let manifests = up + path("").to_str().unwrap().trim_start_matches('/');
    let mut text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         resources: [{manifests}/base]\ncomponents:\n"
    );
    for component in components {
        text += &format!("  - {manifests}/components/{component}\n");
    }
    std::fs::write(overlay.path().join("kustomization.yaml"), text).unwrap();
    run(tool("kustomize").arg(overlay.path()))
}

/// The objects in a text of YAML.
pub fn objects(yaml: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(yaml).map(|one| Value::deserialize(one).unwrap()).collect()
}

/// The only object of a kind and name.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found =
        objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let first = found.next().unwrap_or_else(|| panic!("there is no {kind} {name}"));
    assert!(found.next().is_none(), "{kind} {name} is there twice");
    first
}

#[test]
fn nodes_own_traffic_is_encrypted_by_a_component() {
    for (components, encrypt_host) in [(&[][..], "false"), (&["encrypt-host"], "true")] {
        let objects = objects(&build_with(components));
        assert_eq!(object(&objects, "ConfigMap", "warren-settings")["data"]["encrypt-host"], encrypt_host);
    }
}

#[test]
fn settings_are_patched_by_components() {
    let settings = |components: &[&str]| {
        let objects = objects(&build_with(components));
        let data = &object(&objects, "ConfigMap", "warren-settings")["data"];
        (data["enforcement"].as_str().unwrap().to_owned(), data["withdraw"].as_str().unwrap().to_owned())
    };
    for (components, enforcement, withdraw) in [
        (&[][..], "strict", "false"),
        (&["permissive"], "permissive", "false"),
        (&["permissive", "strict"], "strict", "false"),
        (&["withdraw"], "permissive", "true"),
    ] {
        assert_eq!(settings(components), (enforcement.to_owned(), withdraw.to_owned()), "{components:?}");
    }
}

/// The base lists every setting that the README does, so that `kubectl edit` shows what there is; that the daemon takes
/// each is another test's.
#[test]
fn settings_are_those_of_the_readme() {
    let objects = objects(&build("base"));
    let data = object(&objects, "ConfigMap", "warren-settings")["data"].as_object().unwrap();
    let mut base: Vec<_> = data.keys().cloned().collect();
    base.sort();
    let readme = std::fs::read_to_string(path("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Settings\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut told: Vec<_> = section
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    told.sort();
    assert_eq!(base, told);
}
