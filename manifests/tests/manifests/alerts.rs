//! The alerts: that Prometheus takes them, that they fire when they should, and that their metrics exist.

use serde_json::Value;

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
