//! What a run has to say, for people: tables in Markdown, and plots that GitHub and browsers show.
//!
//! ```text
//!   report RUN         report.md, throughput.svg, cost.svg, latency.svg beside RUN
//!   report OLD NEW     as well change.svg: what became of each figure from OLD to NEW
//! ```
//!
//! Compared is the first program of NEW, with itself or, where OLD has not measured it, with the first of OLD.

mod markdown;
mod plots;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::record::Run;

/// Options of `report`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// A run, as `--json` kept it; with an earlier one in front, the two are compared.
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
    let (before, file) = match &files[..] {
        [file] => (None, file),
        [before, file] => (Some(Run::read(before)?), file),
        more => bail!("a report is of one run, or of two that are compared, not of {}", more.len()),
    };
    let (before, run) = (before.as_ref(), &Run::read(file)?);
    let folder = out.as_deref().or(file.parent()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Metric;
    use crate::record::tests::run_of;

    #[test]
    fn two_runs_are_compared_and_more_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let kept = |program: &str, value: f64| {
            let file = folder.path().join(format!("{program}.json"));
            run_of(&[("tcp1", program, Metric::Throughput, &[value])]).write(&file).unwrap();
            file
        };
        let (plain, warren) = (kept("plain", 8.0), kept("warren", 6.0));
        let report = |runs: &[&PathBuf]| {
            let runs = runs.iter().map(|run| (*run).clone()).collect();
            report(&Options { runs, out: Some(folder.path().join("report")) })
        };
        let names = |files: Vec<PathBuf>| -> Vec<String> {
            files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(report(&[&warren]).unwrap()), ["report.md", "throughput.svg"]);
        assert_eq!(names(report(&[&plain, &warren]).unwrap()), ["report.md", "throughput.svg", "change.svg"]);
        let refused = report(&[&plain, &plain, &warren]).unwrap_err().to_string();
        assert_eq!(refused, "a report is of one run, or of two that are compared, not of 3");
    }
}
