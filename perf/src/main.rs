//! `warren-perf`: Warren on one machine, to be seen and measured.
//!
//! - [`demo`]: a mesh of namespaces with real traffic, and a sniffer that looks for clear text.
//! - [`lanes`]: which lane of a node carries what.
//! - [`mod@bench`]: WireGuard programs side by side, and the targets that Warren has to meet.
//! - [`pair`]: the same kinds of traffic between two real machines.
//! - [`report`]: tables and plots of what was measured.
//!
//! A measurement is kept as a [`record`]; [`summary`] makes of it what people look at.

mod args;
mod bench;
mod demo;
mod lanes;
mod machine;
mod pair;
mod progress;
mod record;
mod report;
mod stats;
mod summary;
mod traffic;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match args::Args::parse().command {
        args::Command::Demo(options) => demo::main(&options),
        args::Command::Lanes(options) => lanes::main(&options),
        args::Command::Bench(options) => bench::main(&options),
        args::Command::Report(options) => report::main(&options),
        args::Command::Server(options) => pair::serve(&options),
        args::Command::Client(options) => pair::measure(&options),
    }
}
