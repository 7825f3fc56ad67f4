//! Structured logs on standard error: text on a terminal, JSON otherwise.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Starts logging what `filter` lets through. The client of the API server warns of each watch that ends, which
/// is how they all do; it is heard only when it is named.
pub fn init(filter: &str) -> anyhow::Result<()> {
    let quiet = if filter.contains("kube") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{filter}{quiet}"))
        .with_context(|| format!("--log {filter:?} is no log filter"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    Ok(())
}
