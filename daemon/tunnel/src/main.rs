//! The program `warren-tunnel`: one WireGuard interface in userspace.
//!
//! It behaves as wireguard-go and boringtun-cli do: `warren-tunnel wg0` creates the interface and its
//! configuration socket, goes into the background once both exist, and ends when either is removed.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;
use warren_tunnel::aead::{self, Choice};
use warren_tunnel::runtime::{MAX_LANES, Tunnel};
use warren_tunnel::{daemon, demand, uapi};

/// How long the program may take to answer a probe. It takes milliseconds; a kubelet gives up after this and more.
const PROBE: Duration = Duration::from_secs(2);

/// A WireGuard interface in userspace, configured with wg(8).
#[derive(Parser)]
#[command(disable_version_flag = true)]
struct Args {
    /// Say which version this is, and what encrypts packets here
    #[arg(short = 'V', long)]
    version: bool,
    /// Stay in the foreground, and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Serve each interface whose name begins with IFNAME, but only while the file NAME.wanted is beside its socket;
    /// always in the foreground
    #[arg(long)]
    on_demand: bool,
    /// Ask the program that serves the interface whether it answers, and do nothing else: a liveness probe. With
    /// --on-demand, all interfaces are asked for that somebody wants
    #[arg(long, conflicts_with = "lanes")]
    probe: bool,
    /// Threads, each with a queue of the interface and a UDP port of its own (the listen port and those
    /// after it)
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_LANES as i64))]
    lanes: u16,
    /// What encrypts packets: Intel's library libIPSec_MB.so.1 where it is installed and the processor has AVX-512, which
    /// is faster, else ring; or the one that is named
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = Choice::Auto)]
    aead: Choice,
    /// What to log: error, warn, info, debug, trace, off, or a tracing filter. In the background nothing is
    /// logged unless this is given; wireguard-go's "verbose" and "silent" are understood
    #[arg(long, env = "LOG_LEVEL", value_name = "FILTER")]
    log: Option<String>,
    /// The name of the interface to create; with --on-demand, how the names begin
    #[arg(value_name = "IFNAME", required_unless_present = "version")]
    interface: Option<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-tunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Args { version, foreground, on_demand, probe, lanes, aead, log, interface }: Args) -> Result<()> {
    let Some(interface) = interface.filter(|_| !version) else {
        let engine = aead::select(aead).context("--aead")?;
        println!("warren-tunnel {}, AEAD by {engine}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    };
    if probe {
        return if on_demand { demand::probe(&interface, PROBE) } else { self::probe(&interface) };
    }
    // Keys are in memory from now on: no core dumps, no ptrace by others than root.
    nix::sys::prctl::set_dumpable(false).context("making the process undumpable")?;
    start_log(log.as_deref().unwrap_or(if foreground || on_demand { "info" } else { "off" }))?;
    aead::select(aead).context("--aead")?;
    if on_demand {
        return demand::serve(&interface, lanes.into());
    }
    let tunnel = Tunnel::create(&interface, lanes.into())?;
    if foreground {
        tunnel.serve(|| Ok(()))?;
        return Ok(());
    }
    let background = daemon::into_background(log.is_some())?;
    // From here on there is nobody to tell but through `background`.
    background.report(|ready| tunnel.serve(ready).map(drop))
}

/// Fails unless the interface's socket answers in time. That peers are away is no fault of the program.
fn probe(interface: &str) -> Result<()> {
    let socket = uapi::socket_path(interface);
    uapi::client::get(&socket, PROBE)
        .map(drop)
        .with_context(|| format!("nobody serves {interface} as it should"))
}

/// Text on standard error.
fn start_log(filter: &str) -> Result<()> {
    let filter = match filter {
        "silent" => "off",
        "verbose" => "debug",
        filter => filter,
    };
    let filter = EnvFilter::try_new(filter).context("--log takes a level or a filter")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
