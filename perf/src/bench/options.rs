//! The command line of `bench`.

use std::path::PathBuf;

use clap::Args;

use super::programs::Program;
use super::scenario::Scenario;

/// Rounds that a verdict takes: the median of fewer says too little.
pub const ENOUGH_ROUNDS: u32 = 5;

/// Options of `bench`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// What to measure, in the order of the tables.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "warren,wireguard-go,gotatun,boringtun,kernel,plain"
    )]
    pub programs: Vec<Program>,
    /// What to do with each [default: all].
    #[arg(long, value_enum, value_delimiter = ',',
          default_values_t = Scenario::ALL, hide_default_value = true)]
    pub scenario: Vec<Scenario>,
    /// How often each measurement is made.
    #[arg(long, default_value_t = ENOUGH_ROUNDS, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of each measurement, after a warm-up.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Keep every value in this file, written after each round; `warren-perf report` reads it.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Fail unless every target is met.
    #[arg(long)]
    pub check: bool,
}
