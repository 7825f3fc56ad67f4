//! All that can be applied is what the API servers of several versions take, with no field misspelt.

use std::process::Command;

use crate::kustomize::{build, build_with};
use crate::tools::{path, run, tool};

/// The oldest the validator knows, the oldest with admission policies, and the newest it knows.
const OLDEST: &str = "1.25";
const OLDEST_WITH_POLICIES: &str = "1.30";
const NEWEST: &str = "1.37";

fn validate(yaml: &str, version: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    std::fs::write(&file, yaml).unwrap();
    run(validator(version).arg(&file));
}

fn validator(version: &str) -> Command {
    let mut command = tool("kubernetes-validate");
    command.args(["--strict", "--quiet", "-k", version]);
    command
}

/// Every folder of `components`, so that none is forgotten.
fn components() -> Vec<String> {
    let folders = std::fs::read_dir(path("components")).unwrap();
    let mut names: Vec<_> =
        folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names
}

#[test]
fn everything_is_valid() {
    for version in [OLDEST, OLDEST_WITH_POLICIES, NEWEST] {
        validate(&build("base"), version);
    }
    for component in components() {
        let text = build_with(&[&component]);
        for version in [OLDEST, OLDEST_WITH_POLICIES, NEWEST] {
            if component != "admission" || version != OLDEST {
                validate(&text, version);
            }
        }
    }
    for example in std::fs::read_dir(path("examples")).unwrap() {
        let name = example.unwrap().file_name().into_string().unwrap();
        for version in [OLDEST_WITH_POLICIES, NEWEST] {
            validate(&build(&format!("examples/{name}")), version);
        }
    }
}

/// The validator would notice.
#[test]
fn what_is_misspelt_is_invalid() {
    let text = build("base").replace("readOnlyRootFilesystem:", "readOnlyRootFileSystem:");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    std::fs::write(&file, text).unwrap();
    let output = validator(NEWEST).arg(&file).output().unwrap();
    assert!(!output.status.success());
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("readOnlyRootFileSystem"), "{said}");
}
