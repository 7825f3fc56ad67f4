//! Where kube-apiserver and etcd are.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// The script that knows, and that makes what is missing. This crate never leaves the source tree.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bin/kube-apiserver.sh");

/// The two programs of a control plane.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) server: PathBuf,
    pub(super) etcd: PathBuf,
    /// The N of the server's version 1.N.
    pub(super) minor: u32,
}

/// Finds the programs; the error says how they are made.
pub(super) fn find() -> Result<Programs> {
    let paths = process::output(Command::new(SCRIPT).arg("where"))?;
    let mut paths = paths.lines().map(PathBuf::from);
    let mut next = || paths.next().with_context(|| format!("{SCRIPT} where printed too little"));
    let (server, etcd) = (next()?, next()?);
    for program in [&server, &etcd] {
        ensure!(program.is_file(), "{SCRIPT} names {}, which does not exist", program.display());
    }
    // `Kubernetes v1.20.2`
    let version = process::output(Command::new(&server).arg("--version"))?;
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    let minor = minor.with_context(|| format!("{} calls itself {version:?}", server.display()))?;
    Ok(Programs { server, etcd, minor })
}

/// Fails where the programs are missing, before anything is built that needs them.
pub fn ensure_present() -> Result<()> {
    find().map(drop)
}
