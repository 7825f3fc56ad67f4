//! The alerts: that Prometheus takes them, that they fire when they should, and that their metrics exist.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};
use warrend::http::Posted;
use warrend::metrics;
use warrend::report::Report;

use crate::kustomize::{build_with, object, objects};
use crate::tools::{path, run, tool};

fn folder() -> std::path::PathBuf {
    path("components/monitoring")
}

#[test]
fn prometheus_takes_them_and_they_fire_when_they_should() {
    let checked = run(tool("promtool").args(["check", "rules", "alerts.yaml"]).current_dir(folder()));
    assert!(checked.contains("SUCCESS"), "{checked}");
    let tested = run(tool("promtool").args(["test", "rules", "alerts-test.yaml"]).current_dir(folder()));
    assert!(tested.contains("SUCCESS"), "{tested}");
}

#[test]
fn every_alert_is_tested_and_in_the_config_map() {
    let alerts = std::fs::read_to_string(folder().join("alerts.yaml")).unwrap();
    let tests = std::fs::read_to_string(folder().join("alerts-test.yaml")).unwrap();
    let groups: Value = serde_norway::from_str(&alerts).unwrap();
    let rules = groups["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} has no test in which it fires");
    }
    let objects = objects(&build_with(&["monitoring"]));
    assert_eq!(object(&objects, "ConfigMap", "warren-alerts")["data"]["alerts.yaml"], alerts.as_str());
}

/// What a daemon serves that has a peer and a registry.
fn metrics() -> String {
    let status = json!({
        "node": "a", "publicKey": "eDZx3oHOSSg2QTD4D0DTdbbRXlPN+w8VEyZCpVkjKlU=", "epoch": 0, "backend": "userspace",
        "interface": "warren-a0", "mtu": 1420, "enforcement": "strict", "ready": true,
        "podCIDRs": [], "endpoints": [], "quarantined": [], "waiting": [],
        "peers": [{
            "node": "b", "publicKey": "eDZx3oHOSSg2QTD4D0DTdbbRXlPN+w8VEyZCpVkjKlU=", "backend": "userspace",
            "endpoint": null, "handshakeAge": 1.0, "rxBytes": 0, "txBytes": 0, "allowedIPs": [],
        }],
        "registry": {
            "source": "https://192.0.2.1", "connected": true, "lastContactAge": 1.0, "requests": { "list": 1 },
            "suppressedEvents": 0,
        },
        "guard": { "outPod": 0, "outNode": 0, "inPod": 0, "inNode": 0 },
    });
    let status = Some(serde_json::from_value(status).unwrap());
    let report = Report { status, failed: false, failures: vec![], acted: false };
    metrics::encode(&Posted { report, turned: Instant::now(), turns: 1, failures: 0 })
}

/// An alert on a metric that no daemon has would never fire.
#[test]
fn every_metric_exists() {
    let alerts = std::fs::read_to_string(folder().join("alerts.yaml")).unwrap();
    let groups: Value = serde_norway::from_str(&alerts).unwrap();
    let served = metrics();
    let served: BTreeSet<_> = served.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let mut used = BTreeSet::new();
    for rule in groups["groups"][0]["rules"].as_array().unwrap() {
        let expression = rule["expr"].as_str().unwrap();
        used.extend(expression.split(word).filter(|word| word.starts_with("warren_")));
    }
    assert!(used.len() >= 7, "{used:?}");
    for metric in used {
        assert!(served.contains(metric), "{metric} is not among {served:?}");
    }
}
