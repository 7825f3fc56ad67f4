//! `keyctl`, the operators' command line of Warren: keys and tunnels as the node's daemon sees them.
//!
//! One file a noun; this one reads the command line.

mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Inspect Warren's keys and tunnels.
#[derive(Debug, Parser)]
#[command(name = "keyctl", version, about)]
struct Args {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show this node's key, peers and quarantine. Fails while the node is not ready.
    Status(status::Status),
}

fn main() -> ExitCode {
    let Args { command } = Args::parse();
    let result = match command {
        Command::Status(status) => status.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("keyctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
