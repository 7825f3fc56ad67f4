//! The benchmark from end to end, as short as it gets: that it measures, keeps and reports, not how fast anything is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const WARREN_PERF: &str = env!("CARGO_BIN_EXE_warren-perf");

fn warren_perf(arguments: &[&str]) -> Output {
    Command::new(WARREN_PERF).args(arguments).output().expect("warren-perf starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn bench(folder: &Path, arguments: &[&str]) -> (PathBuf, String) {
    let json = folder.join("run.json");
    let file = json.to_str().expect("a temporary folder has a plain name");
    let output =
        warren_perf(&[&["bench", "--rounds", "1", "--seconds", "1", "--json", file], arguments].concat());
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    (json, text)
}

#[test]
fn a_short_run_is_measured_kept_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (json, said) =
        bench(folder.path(), &["--programs", "warren,plain", "--scenario", "tcp1,rtt,udp,peers"]);
    let run: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let samples = run["samples"].as_array().unwrap();
    let value = |scenario: &str, program: &str, metric: &str| {
        let of_it = |sample: &&Value| sample["scenario"] == scenario && sample["program"] == program;
        let sample =
            samples.iter().find(of_it).unwrap_or_else(|| panic!("no {scenario} of {program}: {run}"));
        sample["values"][metric].as_f64().unwrap_or_else(|| panic!("no {metric} in {sample}"))
    };
    assert_eq!(samples.len(), 8, "{run}");
    for program in ["warren", "plain"] {
        assert!(value("tcp1", program, "gbit_per_s") > 0.01, "{run}");
        assert!(value("rtt", program, "rtt_median_us") > 0.5, "{run}");
        assert!(value("udp", program, "packets_per_s") > 100.0, "{run}");
    }
    // A tunnel costs something and a link without one has no processes.
    assert!(value("tcp1", "warren", "cpu_s_per_gb") > 0.1, "{run}");
    assert!(value("peers", "warren", "peak_mib") > 1.0, "{run}");
    assert!(
        samples
            .iter()
            .all(|sample| sample["program"] != "plain" || sample["values"]["cpu_s_per_gb"].is_null())
    );
    assert!(run["machine"]["cores"].as_u64().unwrap() > 0, "{run}");
    // Three targets are about Warren alone, and one round is too little for them; those beside wireguard-go lack it.
    assert!(said.contains("tcp1 was not run with wireguard-go"), "{said}");
    assert!(said.contains("NOT judged: 1 of 5 rounds"), "{said}");
    assert!(said.contains("NOT ALL, 0 of 9 targets met, 3 not asked for"), "{said}");

    let out = folder.path().join("report");
    let report = warren_perf(&["report", json.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(report.status.success(), "{}", text(&report));
    let markdown = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(markdown.contains("| TCP, one stream [Gbit/s] | **"), "{markdown}");
    for plot in ["throughput.svg", "cost.svg", "latency.svg"] {
        assert!(markdown.contains(&format!("({plot})")), "{markdown}");
        assert!(std::fs::read_to_string(out.join(plot)).unwrap().starts_with("<svg"), "{plot}");
    }
}

/// Each scenario that the run above leaves out, with the figure that its row of the table shows.
const OTHER_SCENARIOS: [(&str, &str); 9] = [
    ("tcp4", "gbit_per_s"),
    ("tcp-reverse", "gbit_per_s"),
    ("bidir", "gbit_per_s"),
    ("udp-max", "packets_per_s"),
    ("small", "packets_per_s"),
    ("rtt-load", "rtt_median_us"),
    ("vxlan", "gbit_per_s"),
    ("jumbo", "gbit_per_s"),
    ("ipv6", "gbit_per_s"),
];

#[test]
fn every_other_scenario_measures_something() {
    let folder = tempfile::tempdir().unwrap();
    let names = OTHER_SCENARIOS.map(|(name, _)| name).join(",");
    let (json, said) = bench(folder.path(), &["--programs", "warren", "--scenario", &names]);
    let run: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let samples = run["samples"].as_array().unwrap();
    assert_eq!(samples.len(), OTHER_SCENARIOS.len(), "{run}");
    for (sample, (name, metric)) in samples.iter().zip(OTHER_SCENARIOS) {
        assert_eq!((&sample["scenario"], &sample["failed"]), (&name.into(), &Value::Null), "{sample}");
        let value = sample["values"][metric].as_f64().unwrap_or_else(|| panic!("no {metric} in {sample}"));
        assert!(value > 0.001, "{sample}");
    }
    // Nothing is promised of a single round.
    assert!(said.contains("NOT ALL, 0 of"), "{said}");
}

#[test]
fn a_missing_program_is_named_and_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(WARREN_PERF)
        .args(["bench", "--programs", "warren,gotatun", "--scenario", "tcp1"])
        .args(["--rounds", "1", "--seconds", "1", "--check"])
        // Nowhere a gotatun; ip, wg and the like are found where Debian keeps them.
        .env("PATH", folder.path())
        .output()
        .expect("warren-perf starts");
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("gotatun is MISSING: no gotatun on PATH"), "{text}");
    assert!(text.contains("NOT met"), "{text}");
}
