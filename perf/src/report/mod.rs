//! What a run has to say, for people: tables in Markdown, and plots that GitHub and browsers show.
//!
//! ```text
//!   report RUN         report.md, throughput.svg, cost.svg, latency.svg beside RUN
//!   report OLD NEW     as well change.svg: what became of each figure from OLD to NEW
//! ```

mod markdown;
mod plots;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::record::Run;

/// Options of `report`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Runs, as `--json` kept them. The last one is reported; with several, it is compared with the first.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Where to write [default: the folder of the last run].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Writes the report and says where.
pub fn main(options: &Options) -> ExitCode {
    match report(options) {
        Ok(files) => {
            files.iter().for_each(|file| println!("report: {}", file.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("report: FAILED, {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the files that were written.
fn report(options: &Options) -> Result<Vec<PathBuf>> {
    let Options { runs: files, out } = options;
    let runs: Vec<Run> = files.iter().map(|file| Run::read(file)).collect::<Result<_>>()?;
    let (last, run) = files.last().zip(runs.last()).context("no run was named")?;
    let folder = out.as_deref().or(last.parent()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let before = runs.split_last().and_then(|(_, earlier)| earlier.first());

    let mut written = Vec::new();
    let mut write = |name: &str, text: &str| {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        written.push(file);
        anyhow::Ok(())
    };
    let plots = plots::draw(run, before)?;
    let names: Vec<&str> = plots.iter().map(|plot| plot.name).collect();
    write("report.md", &markdown::text(run, before, &names))?;
    plots.iter().try_for_each(|plot| write(plot.name, &plot.svg))?;
    Ok(written)
}
