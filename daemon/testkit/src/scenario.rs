//! The `main` of a scenario binary (`harness = false`): enters namespaces of its own, then behaves like any
//! test of `cargo test`, with its filters and options.

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};

use crate::{isolate, tools};

/// One promise and the check of it. Its error is the report of what broke it.
pub type Scenario = fn() -> Result<()>;

/// Runs the scenarios that the command line asks for, one after the other: they measure times and loss, and
/// would measure each other.
///
/// Where namespaces or one of the `programs` are not to be had, that is a failure with one line of reason:
/// a privileged test never passes silently.
pub fn run(programs: &[&str], scenarios: &[(&'static str, Scenario)]) -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    if !arguments.list
        && let Err(error) = isolate::enter().and_then(|()| tools::requires(programs))
    {
        eprintln!("cannot run: {error:#}");
        return ExitCode::FAILURE;
    }
    let trials = scenarios
        .iter()
        .map(|&(name, scenario)| {
            Trial::test(name, move || scenario().map_err(|error| format!("{error:#}").into()))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
