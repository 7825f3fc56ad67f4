//! The benchmark: WireGuard programs side by side on one machine, in rounds, so that they meet the same weather.
//!
//! ```text
//!   for each round             what a machine does in a minute, it does to all programs
//!     for each scenario
//!       for each program       in another order each round
//!         [site]      two namespaces and a link, fresh; the program on both ends; configured by wg
//!         [measure]   warm-up, then traffic; what it carried, what it cost ([cost])
//!     the run so far is written to --json
//!   [table]    median, smallest and largest; ratios of the same round
//!   [targets]  what Warren promises, each `met` or `NOT met`
//! ```
//!
//! A program that is missing or fails is named with the reason, in the tables and in the JSON.

mod cost;
mod measure;
mod options;
mod programs;
mod scenario;
mod site;
mod table;
pub mod targets;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use warren_testkit::{isolate, tools};

pub use options::Options;
pub use table::results;

use crate::machine::Machine;
use crate::progress::Progress;
use crate::record::{Figures, ProgramNote, Run, Sample};
use programs::{Candidate, Program};
use scenario::Scenario;
use site::{Keys, Site};

/// Sites among which the seconds of idle round trips are divided: which processors wake which is settled at a start, and
/// is most of such a figure.
const RTT_SITES: u32 = 5;

/// Runs the benchmark to its closing line.
pub fn main(options: &Options) -> ExitCode {
    match run(options) {
        Ok(met) if met || !options.check => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("bench: FAILED, {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints everything; returns whether every target is met.
fn run(options: &Options) -> Result<bool> {
    let Options { programs, scenario, rounds, seconds, json, check: _ } = options;
    // Before the namespaces: the repository may belong to somebody whom root in a user namespace is not.
    let machine = Machine::here();
    isolate::enter()?;
    tools::requires(&["ip", "iperf3", "ping", "wg"])?;
    let progress = Progress::start();
    machine.lines().iter().for_each(|line| progress.done("machine", line));
    let candidates: Vec<Candidate> = programs.iter().map(|program| Candidate::find(*program)).collect();
    let mut run = Run::new(machine, notes(&candidates, &progress), *seconds, *rounds);
    ensure!(candidates.iter().any(|candidate| candidate.path.is_ok()), "none of the programs is here");
    let keys = Keys::new()?;
    let settings = measure::Settings { seconds: *seconds };
    for round in 1..=*rounds {
        for scenario in scenario {
            let step = format!("{round}/{rounds}");
            measure_all(&mut run, &candidates, *scenario, round, &keys, &settings, |text| match text {
                Say::Now(text) => progress.update(&step, &text),
                Say::Done(text) => progress.done(&step, &text),
            });
        }
        if let Some(file) = json {
            run.write(file)?;
        }
    }
    println!("\n{}\n", results(&run));
    let verdicts = targets::judge(&run);
    println!("{}\n", table::verdicts(&verdicts));
    let met = verdicts.iter().filter(|verdict| verdict.met()).count();
    let (asked, all) = (verdicts.len(), targets::number());
    let outcome = if met == asked { "OK" } else { "NOT ALL" };
    let rest = if asked == all { String::new() } else { format!(", {} not asked for", all - asked) };
    println!("bench: {outcome}, {met} of {asked} targets met{rest}");
    Ok(met == asked)
}

/// Says of each program what it is or why it is not measured.
fn notes(candidates: &[Candidate], progress: &Progress) -> Vec<ProgramNote> {
    let note = |candidate: &Candidate| {
        let name = candidate.program.name().to_owned();
        let (version, missing) = match &candidate.path {
            Ok(path) => (Some(candidate.program.version(path)), None),
            Err(reason) => (None, Some(format!("{reason:#}"))),
        };
        let text = match (&version, &missing) {
            (_, Some(reason)) => format!("{name} is MISSING: {reason}"),
            (version, None) => format!("{name}: {}", version.as_deref().unwrap_or_default()),
        };
        progress.done("program", &text);
        ProgramNote { name, version, missing }
    };
    candidates.iter().map(note).collect()
}

/// What there is to say of a step.
enum Say {
    /// Until the next.
    Now(String),
    /// For good.
    Done(String),
}

/// One scenario of one round with every program that is there.
fn measure_all(
    run: &mut Run,
    candidates: &[Candidate],
    scenario: Scenario,
    round: u32,
    keys: &Keys,
    settings: &measure::Settings,
    mut say: impl FnMut(Say),
) {
    let mut here: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.path.is_ok()).collect();
    // Whoever comes first or last does so in one round only.
    let turn = (round as usize - 1) % here.len();
    here.rotate_left(turn);
    let mut said = Vec::new();
    for Candidate { program, path } in here {
        let Ok(path) = path else { continue };
        say(Say::Now(format!("{scenario}: {program}")));
        let measured = measure_one(*program, path, scenario, keys, settings)
            .with_context(|| format!("{program} in {scenario}, round {round}"));
        let (figures, failed) = match measured {
            Ok(figures) => (figures, None),
            Err(error) => (Figures::default(), Some(format!("{error:#}"))),
        };
        said.push(match &failed {
            None => format!("{program} {}", scenario.headline(&figures)),
            Some(reason) => format!("{program} FAILED ({reason})"),
        });
        let (scenario, program) = (scenario.to_string(), program.name().to_owned());
        run.samples.push(Sample { scenario, program, round, figures, failed });
    }
    say(Say::Done(format!("{:<11} {}", scenario.to_string(), said.join("   "))));
}

fn measure_one(
    program: Program,
    path: &std::path::Path,
    scenario: Scenario,
    keys: &Keys,
    settings: &measure::Settings,
) -> Result<Figures> {
    let at_fresh_site = |settings: &measure::Settings| {
        let site = Site::new(program, path, &scenario.network(), keys)?;
        measure::measure(&site, scenario, settings)
    };
    if scenario != Scenario::Rtt {
        return at_fresh_site(settings);
    }
    let part = measure::Settings { seconds: settings.seconds.div_ceil(RTT_SITES) };
    let round_trips =
        (0..RTT_SITES).map(|_| Ok(at_fresh_site(&part)?.round_trips_us)).collect::<Result<Vec<_>>>()?;
    Figures::of_round_trips(round_trips.concat()).context("no ping was answered")
}
