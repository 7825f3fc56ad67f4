//! A real API server takes everything that an administrator may apply: the base, each component, each example.
//!
//! Server-side dry runs: what the server would do, with its validation, defaults and admission, but without storing
//! it. A kind that the server is too young for is named, and only where its version says that it has to be.
//!
//! The admission policies get the requests that `tests/manifests` evaluates (`admission.rs`).

mod admission;
#[path = "../manifests/kustomize.rs"]
mod kustomize;
#[path = "../manifests/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use warren_testkit::apiserver::real::{ApiServer, Patch, Response};
use warren_testkit::lab::{Lab, Plan, Registry};
use warren_testkit::scenario::{self, Scenario};

use kustomize::{build, build_with, object, objects};
use tools::path;

/// Kinds that are younger than the oldest server these tests meet: since which minor version of Kubernetes 1.
const YOUNG: &[(&str, u32)] = &[
    ("policy/v1 PodDisruptionBudget", 21),
    ("admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy", 30),
    ("admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding", 30),
];

const SCENARIOS: &[(&str, Scenario)] = &[
    ("the API server takes every manifest", takes_everything),
    ("it refuses what it should", refuses_what_is_wrong),
    ("the admission policies refuse and allow what they should", admission::same_verdicts),
];

fn main() -> ExitCode {
    scenario::run(&["ip"], SCENARIOS)
}

/// A cluster with one node, and Warren's namespace.
fn cluster() -> Result<Lab> {
    Lab::new(Plan { nodes: 1, pods: 0, registry: Registry::Kubernetes, ..Plan::default() })
}

fn takes_everything() -> Result<()> {
    let lab = cluster()?;
    let api = lab.api();
    let version = api.version()?;
    let minor = minor(&version)?;

    let folder = |relative: &str| -> Result<Vec<String>> {
        let entries = std::fs::read_dir(path(relative)).with_context(|| relative.to_owned())?;
        entries.map(|entry| Ok(entry?.file_name().into_string().expect("a name in UTF-8"))).collect()
    };
    let mut all = vec![("base".to_owned(), build("base"))];
    for component in folder("components")? {
        all.push((format!("component {component}"), build_with(&[&component])));
    }
    for example in folder("examples")? {
        all.push((format!("example {example}"), build(&format!("examples/{example}"))));
    }
    let (mut accepted, mut kinds, mut absent) = (0, BTreeSet::new(), BTreeSet::new());
    for (name, text) in &all {
        for object in objects(text) {
            let kind = kind(&object);
            match dry_run(api, &object).with_context(|| format!("{name}: {kind}"))? {
                Some(answer) => {
                    answer.ok().with_context(|| format!("{name}: {kind}"))?;
                    accepted += 1;
                    kinds.insert(kind);
                }
                None => {
                    absent.insert(kind);
                }
            }
        }
    }
    println!(
        "Kubernetes {version}: {accepted} objects of {} kinds accepted, of {} builds",
        kinds.len(),
        all.len()
    );
    for kind in absent {
        let since = YOUNG.iter().find(|(young, _)| *young == kind).map(|(_, since)| *since);
        match since {
            Some(since) if minor < since => {
                println!("NOT tried, since it needs Kubernetes 1.{since}: {kind}")
            }
            _ => bail!("Kubernetes {version} does not know {kind}"),
        }
    }
    Ok(())
}

/// A check that cannot fail would be none.
fn refuses_what_is_wrong() -> Result<()> {
    let lab = cluster()?;
    let objects = objects(&build("base"));
    let break_at = |kind: &str, name: &str, pointer: &str, value: Value| -> Result<()> {
        let mut broken = object(&objects, kind, name).clone();
        *broken.pointer_mut(pointer).with_context(|| format!("{kind} without {pointer}"))? = value;
        let answer = dry_run(lab.api(), &broken)?.context("not tried")?;
        ensure!(
            answer.status == 422,
            "{kind} with another {pointer}: HTTP {}: {}",
            answer.status,
            answer.text
        );
        Ok(())
    };
    let container = "/spec/template/spec/containers/0";
    break_at(
        "DaemonSet",
        "warren",
        "/spec/selector/matchLabels",
        json!({"app.kubernetes.io/name": "other"}),
    )?;
    break_at("DaemonSet", "warren", &format!("{container}/name"), json!("not a name"))?;
    break_at("DaemonSet", "warren", &format!("{container}/volumeMounts/0/name"), json!("absent"))?;
    break_at("ConfigMap", "warren-settings", "/data", json!({"no key": ""}))
}

fn kind(object: &Value) -> String {
    format!(
        "{} {}",
        object["apiVersion"].as_str().unwrap_or_default(),
        object["kind"].as_str().unwrap_or_default()
    )
}

/// The N of `v1.N.P`.
fn minor(version: &str) -> Result<u32> {
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.with_context(|| format!("the server calls itself {version:?}"))
}

/// Applies an object without storing it; `None` if the server does not know its kind.
fn dry_run(api: &ApiServer, object: &Value) -> Result<Option<Response>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let group = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let client = api.client();
    let resources = client.get(&group)?;
    if resources.status == 404 {
        return Ok(None);
    }
    let resources = resources.ok()?;
    let resource = resources["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|resource| resource["kind"] == object["kind"] && !text(&resource["name"]).contains('/'));
    let Some(resource) = resource else { return Ok(None) };
    let (metadata, plural) = (&object["metadata"], text(&resource["name"]));
    let namespace = match resource["namespaced"].as_bool() {
        Some(true) => format!("/namespaces/{}", metadata["namespace"].as_str().unwrap_or("default")),
        _ => String::new(),
    };
    let path = format!("{group}{namespace}/{plural}/{}", text(&metadata["name"]));
    // Servers from 1.25 on refuse what they do not know, too.
    let path = format!("{path}?dryRun=All&force=true&fieldValidation=Strict");
    client.patch(&path, Patch::Apply("administrator"), object).map(Some)
}
