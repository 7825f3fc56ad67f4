//! The demo: a mesh from one command, and the proof that it hides what pods say.
//!
//! One file for each step, in this order:
//! 1. [`lab`]: nodes, pods and an underlay in namespaces; a sniffer on the underlay.
//! 2. [`control`]: *without* Warren the pods talk, and the sniffer reads it. This gives a 0 at the end its
//!    meaning.
//! 3. [`mesh`]: a warrend on every node, until all are ready.
//! 4. [`traffic`]: every pod pings every pod of the other nodes; iperf3 along a ring of nodes.
//! 5. [`verdict`]: what the sniffer and the daemons say, checked against each other; the table.
//! 6. [`keep`]: with `--keep`, how to enter what is left running.

mod control;
mod interrupt;
mod keep;
mod mesh;
mod traffic;
mod verdict;

use std::process::ExitCode;

use anyhow::{Context, Result};
use warren_testkit::lab::{self, Lab, Plan};
use warren_testkit::{isolate, tools};

use crate::args;
use crate::progress::Progress;

/// Runs the demo to its closing line.
pub fn main(options: &args::Demo) -> ExitCode {
    let entered = interrupt::hold().and_then(|()| isolate::enter()).and_then(|()| interrupt::watch());
    let (lab, progress) = match entered.and_then(|()| build(options)) {
        Ok(built) => built,
        Err(error) => return close(Err(error)),
    };
    let result = run(&lab, options, &progress);
    if result.is_err() {
        eprint!("{}", lab.logs());
    }
    let status = close(result);
    if options.keep { keep::until_interrupted(&lab, status) } else { status }
}

/// Prints the one closing line, after whatever details there are, and gives the exit status that goes with it.
fn close(result: Result<String>) -> ExitCode {
    match result {
        Ok(summary) => {
            println!("demo: OK, {summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let error = format!("{error:#}");
            let (line, details) = error.split_once('\n').unwrap_or((&error, ""));
            if !details.is_empty() {
                println!("{details}\n");
            }
            println!("demo: FAILED, {line}");
            ExitCode::FAILURE
        }
    }
}

fn build(options: &args::Demo) -> Result<(Lab, Progress)> {
    tools::requires(&["ip", "iperf3", "nft", "ping", "sleep"])?;
    for program in ["warrend", "warren-tunnel"] {
        lab::binary(program)?;
    }
    let progress = Progress::start();
    let registry = match options.registry {
        args::Registry::Dir => lab::Registry::Directory,
        args::Registry::Kubernetes => lab::Registry::Kubernetes,
    };
    let plan = Plan { nodes: options.nodes.into(), registry, ..Plan::default() };
    let lab = Lab::new_with_progress(plan, |built| {
        progress.update("lab", &format!("{built} of {} nodes", options.nodes));
    })
    .context("building the lab")?;
    progress.done(
        "lab",
        &format!("{} nodes with {} pods each on one underlay, IPv4 and IPv6", lab.plan.nodes, lab.plan.pods),
    );
    if options.registry == args::Registry::Kubernetes {
        let (api, version) = (lab.api(), lab.api().version()?);
        progress.done("registry", &format!("Kubernetes {version}, {}, roles as shipped", api.url()));
    }
    Ok((lab, progress))
}

/// All steps from the sniffer on; returns the closing line.
fn run(lab: &Lab, options: &args::Demo, progress: &Progress) -> Result<String> {
    let capture = lab.capture().context("listening to the underlay")?;
    control::talk_in_the_clear(lab, &capture, progress)?;
    // From here on a single packet in the clear fails the demo.
    mesh::start(lab, progress)?;
    let pings = traffic::ping_all(lab, progress)?;
    let ring = traffic::measure_ring(lab, options.seconds(), progress)?;
    verdict::judge(lab, &capture, &pings, &ring, progress)
}
