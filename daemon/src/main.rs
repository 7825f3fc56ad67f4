//! The program `warrend`: see the library of the same name.

use anyhow::Context as _;
use clap::Parser as _;
use warrend::args::{Args, Command};
use warrend::{agent, hardening, logs, memory};

fn main() -> anyhow::Result<()> {
    let Args { log, shares, command, run } = Args::parse();
    logs::init(&log)?;
    hardening::forbid_core_dumps()?;
    memory::share_heaps();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the event loop could not be set up")?;
    runtime.block_on(async {
        match (command, run) {
            (Some(Command::Teardown { state_dir }), _) => agent::teardown(&state_dir, shares).await,
            (None, Some(run)) => agent::run(run, shares).await,
            (None, None) => anyhow::bail!("nothing to do: see --help"),
        }
    })
}
