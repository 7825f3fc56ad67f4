//! `warren-perf`: Warren on one machine, to be seen and measured.
//!
//! - [`demo`]: a mesh of namespaces with real traffic, and a sniffer that looks for clear text.

mod args;
mod demo;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match args::Args::parse().command {
        args::Command::Demo(options) => demo::main(&options),
    }
}
