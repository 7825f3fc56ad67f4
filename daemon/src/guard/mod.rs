//! The guard: one nftables table that keeps "encrypted or dropped" whatever routes say.
//!
//! Written with `nft -f -`, which applies a text as one transaction. The program, not a library: every distribution
//! ships the one that fits its kernel, and what the administrator sees with `nft list table inet warren` is what was
//! written. What happens at each look, and with each node that comes or goes, goes without it: reading back, and
//! changes of the sets.

pub mod nftables;
mod readback;
mod script;

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use warren_api::status::GuardCounters;
use warren_core::{Action, Guard, Numbers};

use crate::blocking::blocking;
use nftables::Socket;
use readback::Listing;

/// What stands in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether the table exists at all.
    pub table: bool,
    /// The guard, if the table is as Warren writes it.
    pub guard: Option<Guard>,
    /// What its sets hold, whatever became of its rules.
    pub sets: Guard,
    /// Its counters.
    pub counters: GuardCounters,
}

/// Why the guard could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The program cannot be run.
    #[error("nft could not be run; install the package nftables")]
    Run(#[source] std::io::Error),
    /// It refused.
    #[error("nft refused to {action}: {message}")]
    Refused {
        /// What was to be done.
        action: String,
        /// What it said.
        message: String,
    },
    /// The kernel does not tell what stands there.
    #[error("nftables cannot be read; is the module nf_tables loaded, and does warrend have NET_ADMIN?")]
    Read(#[source] std::io::Error),
    /// The kernel refused a change.
    #[error("the kernel refused to {action}")]
    Kernel {
        /// What was to be done.
        action: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// Reads back what stands in the kernel, while the caller reads something else: of thousands of nodes, that takes a while.
pub async fn find(numbers: &Numbers) -> Result<Found, GuardError> {
    let numbers = *numbers;
    blocking(move || Ok(list()?.map(|listing| readback::found(&listing, &numbers)).unwrap_or_default())).await
}

/// What the guard's table holds, if there is one.
fn list() -> Result<Option<Listing>, GuardError> {
    Socket::open().and_then(|mut socket| readback::list(&mut socket)).map_err(GuardError::Read)
}

/// Does one thing that concerns the guard. `counters` are carried over where the table is written anew.
pub async fn apply(action: &Action, numbers: &Numbers, counters: GuardCounters) -> Result<(), GuardError> {
    match action {
        Action::ReplaceGuard(guard) => {
            run(action, &script::replace(guard, numbers, counters)).await?;
            let readback = list()?.map(|listing| listing.fingerprint).unwrap_or_default();
            run(action, &script::put_seal(&script::seal(guard, numbers, readback))).await
        }
        Action::UpdateGuard { add, remove } => Socket::open()
            .and_then(|mut socket| socket.update(&script::sets(remove), &script::sets(add)))
            .map_err(|source| GuardError::Kernel { action: action.to_string(), source }),
        Action::RemoveGuard => run(action, &script::remove()).await,
        _ => Ok(()),
    }
}

async fn run(action: &Action, script: &str) -> Result<(), GuardError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(GuardError::Run)?;
    if let Some(mut stdin) = nft.stdin.take() {
        // If nft ends early, its message says more than the broken pipe.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = nft.wait_with_output().await.map_err(GuardError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    Err(GuardError::Refused { action: action.to_string(), message })
}
