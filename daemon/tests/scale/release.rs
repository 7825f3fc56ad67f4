//! The programs under test, as they are shipped: the figures are promised for a release build.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Builds the programs, unless `$WARREN_BIN_DIR` says where some are; takes a moment if they are up to date.
pub fn build() -> Result<()> {
    if std::env::var_os("WARREN_BIN_DIR").is_some() {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "-p", "warrend", "-p", "warren-tunnel", "--target-dir"])
        .arg(target_directory()?)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cargo cannot be run; build the programs, and name their directory with WARREN_BIN_DIR")?;
    ensure!(status.success(), "the programs cannot be built: cargo ends with {status}");
    Ok(())
}

/// Where a program is.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os("WARREN_BIN_DIR") {
        Some(directory) => PathBuf::from(directory).join(name),
        None => target_directory()?.join("release").join(name),
    };
    ensure!(path.is_file(), "{} does not exist", path.display());
    std::path::absolute(&path).with_context(|| format!("making {} absolute", path.display()))
}

/// The directory that cargo built this program into: TARGET/PROFILE/deps/scale-….
fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding the current program")?;
    program.ancestors().nth(3).map(Path::to_owned).context("a program outside of a target directory")
}
