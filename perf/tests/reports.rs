//! The reports of the runs that are kept say what their data say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where runs are kept, each in a folder.
const RUNS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/runs");
/// Its data.
const DATA: &str = "run.json";

/// Files of a folder that `report` makes, by name.
fn made(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let made = files.filter(|file| file.extension().is_some_and(|kind| kind == "md" || kind == "svg"));
    made.map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&file).unwrap()))
        .collect()
}

#[test]
fn every_report_is_that_of_its_run() {
    let entries = std::fs::read_dir(RUNS).unwrap().map(|entry| entry.unwrap().path());
    let runs: Vec<PathBuf> = entries.filter(|folder| folder.is_dir()).collect();
    assert!(!runs.is_empty(), "no run is kept");
    for run in runs {
        let data = run.join(DATA);
        let fresh = tempfile::tempdir().unwrap();
        let report = Command::new(env!("CARGO_BIN_EXE_warren-perf"))
            .arg("report")
            .arg(&data)
            .arg("--out")
            .arg(fresh.path())
            .output()
            .expect("warren-perf starts");
        assert!(report.status.success(), "{}: {}", data.display(), String::from_utf8_lossy(&report.stdout));
        let (kept, fresh) = (made(&run), made(fresh.path()));
        let names: BTreeSet<&String> = kept.keys().chain(fresh.keys()).collect();
        let differ: Vec<_> = names.into_iter().filter(|name| kept.get(*name) != fresh.get(*name)).collect();
        assert!(
            differ.is_empty(),
            "in {} {differ:?} are not what warren-perf makes of {DATA}; this renews them:\n\
             cargo run -p warren-perf -- report perf/runs/{}/{DATA}",
            run.display(),
            run.file_name().unwrap().to_str().unwrap()
        );
    }
}
