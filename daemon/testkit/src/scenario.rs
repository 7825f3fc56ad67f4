//! The `main` of a scenario binary (`harness = false`): enters namespaces of its own, then behaves like any
//! test of `cargo test`, with its filters and options.

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};

use crate::{isolate, tools};

/// One promise and the check of it. Its error is the report of what broke it.
pub type Scenario = fn() -> Result<()>;

/// The error of a scenario that means nothing here: it is neither passed nor failed but ignored, and says why.
/// For what a backend does not have, never for what a machine lacks and could have.
pub fn not_run(reason: impl Into<String>) -> anyhow::Error {
    NotRun(reason.into()).into()
}

/// See [`not_run`].
#[derive(Debug)]
pub struct NotRun(String);

impl std::error::Error for NotRun {}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not run: {}", self.0)
    }
}

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
    run_trials(&arguments, scenarios)
}

/// Runs those that need neither namespaces nor programs, side by side, as any tests.
pub fn run_unprivileged(scenarios: &[(&'static str, Scenario)]) -> ExitCode {
    run_trials(&Arguments::from_args(), scenarios)
}

fn run_trials(arguments: &Arguments, scenarios: &[(&'static str, Scenario)]) -> ExitCode {
    let trials = scenarios
        .iter()
        .map(|&(name, scenario)| {
            Trial::ignorable_test(name, move || match scenario() {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => match error.downcast_ref::<NotRun>() {
                    Some(reason) => Ok(Completion::ignored_with(reason)),
                    None => Err(format!("{error:#}").into()),
                },
            })
        })
        .collect();
    libtest_mimic::run(arguments, trials).exit_code()
}
