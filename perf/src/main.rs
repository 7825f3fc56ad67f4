//! `warren-perf`: Warren on one machine, to be seen and measured.
//!
//! - [`demo`]: a mesh of namespaces with real traffic, and a sniffer that looks for clear text.
//! - [`lanes`]: which lane of a node carries what.

mod args;
mod demo;
mod lanes;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match args::Args::parse().command {
        args::Command::Demo(options) => demo::main(&options),
        args::Command::Lanes(options) => lanes::main(&options),
    }
}
