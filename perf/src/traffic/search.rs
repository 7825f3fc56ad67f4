//! The highest rate at which a path loses less than 0.1 %: as RFC 2544 section 26.1 finds the throughput of a device,
//! with a bound that a machine shared with its own traffic generator can keep.

use anyhow::{Result, bail};

use super::udp::Trial;

/// What may be lost, in percent.
pub const BEARABLE: f64 = 0.1;

/// Seconds of one trial of a search, of which there are a dozen or two.
pub const TRIAL: f64 = 0.4;

/// Where the search begins, in datagrams per second: every path bears this.
const FIRST: f64 = 4_000.0;

/// Halvings of the ratio between a rate that passes and one that does not: from a factor of 2 to one of 1.02.
const HALVINGS: u32 = 5;

/// A failure may have been the machine's after all: so many times more than was found is tried, too, and if it passes
/// the search starts again from there, so often.
const DOUBT: f64 = 1.25;
const STARTS: u32 = 4;

/// So often a rate is tried before it has failed.
const TRIES: u32 = 3;

/// A rate that passed for a moment may fail for long; then so much less is tried, so often.
const STEP_DOWN: f64 = 0.95;
const STEPS_DOWN: u32 = 12;

/// The sender is at its own limit when it sends less than this share of what it should.
const KEPT_UP: f64 = 0.9;

/// What a search has found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// What became of the highest rate.
    pub trial: Trial,
    /// Whether the search ended where the sender could make no more: the path may carry more than that.
    pub sender_limit: bool,
}

/// Finds the highest rate. `short` is asked again and again with rates in datagrams per second, `long` at the end,
/// until it confirms one; its trial is returned.
///
/// # Errors
/// Those of the trials; and when nothing passes.
pub fn highest(
    mut short: impl FnMut(f64) -> Result<Trial>,
    mut long: impl FnMut(f64) -> Result<Trial>,
) -> Result<Found> {
    let (mut passed, mut sender_limit) = (FIRST, false);
    for _ in 0..STARTS {
        let (bearable, failed) = match double(&mut short, passed)? {
            Doubled::Between(bearable, failed) => (bearable, failed),
            // No higher one can be offered.
            Doubled::Limit(sent) => return confirm(&mut long, sent, true),
        };
        (passed, sender_limit) = halve(&mut short, bearable, failed)?;
        let doubt = passed * DOUBT;
        match attempt(&mut short, doubt)? {
            Attempt::Passed => (passed, sender_limit) = (doubt, false),
            Attempt::Failed | Attempt::Limit(_) => break,
        }
    }
    confirm(&mut long, passed, sender_limit)
}

/// What doubling a rate comes to.
enum Doubled {
    /// The first passed, the second did not.
    Between(f64, f64),
    /// All passed that could be sent: so many per second at last.
    Limit(f64),
}

fn double(short: &mut impl FnMut(f64) -> Result<Trial>, from: f64) -> Result<Doubled> {
    let mut passed = from;
    loop {
        let rate = passed * 2.0;
        match attempt(short, rate)? {
            Attempt::Passed => passed = rate,
            Attempt::Failed => return Ok(Doubled::Between(passed, rate)),
            Attempt::Limit(sent) => return Ok(Doubled::Limit(sent.max(passed))),
        }
    }
}

/// Narrows the gap between a rate that passed and one that failed, and returns one that passed, and whether it was the
/// sender that could not make the next one.
fn halve(
    short: &mut impl FnMut(f64) -> Result<Trial>,
    mut passed: f64,
    mut failed: f64,
) -> Result<(f64, bool)> {
    let mut sender_limit = false;
    for _ in 0..HALVINGS {
        let rate = (passed * failed).sqrt();
        match attempt(short, rate)? {
            Attempt::Passed => passed = rate,
            Attempt::Failed => (failed, sender_limit) = (rate, false),
            Attempt::Limit(_) => (failed, sender_limit) = (rate, true),
        }
    }
    Ok((passed, sender_limit))
}

enum Attempt {
    Passed,
    Failed,
    /// Nothing much was lost, but the sender did not keep up: so many per second it sent.
    Limit(f64),
}

/// On a machine with other work, a moment without a processor is neither the path's fault nor the sender's limit.
fn attempt(trial: &mut impl FnMut(f64) -> Result<Trial>, rate: f64) -> Result<Attempt> {
    let mut outcome = Attempt::Failed;
    for _ in 0..TRIES {
        let trial = trial(rate)?;
        if trial.loss_percent() >= BEARABLE {
            continue;
        }
        if trial.sent_rate() >= KEPT_UP * rate {
            return Ok(Attempt::Passed);
        }
        let before = if let Attempt::Limit(sent) = outcome { sent } else { 0.0 };
        outcome = Attempt::Limit(before.max(trial.sent_rate()));
    }
    Ok(outcome)
}

fn confirm(
    trial: &mut impl FnMut(f64) -> Result<Trial>,
    found: f64,
    mut sender_limit: bool,
) -> Result<Found> {
    let mut rate = found;
    for _ in 0..STEPS_DOWN {
        let trial = trial(rate)?;
        if trial.loss_percent() < BEARABLE {
            sender_limit |= trial.sent_rate() < KEPT_UP * rate;
            return Ok(Found { trial, sender_limit });
        }
        // What the sender can make is more than the path carries for long.
        sender_limit = false;
        rate *= STEP_DOWN;
    }
    bail!("no rate from {found:.0} down to {rate:.0} datagrams/s lost less than {BEARABLE} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries `capacity` datagrams per second, and a sender that can make `limit`.
    fn path(capacity: f64, limit: f64) -> impl Fn(f64) -> Result<Trial> {
        move |rate| {
            let sent = rate.min(limit);
            let [sent, received] = [sent, sent.min(capacity)].map(|rate| (rate * 10.0) as u64);
            Ok(Trial { sent, received, overtaken: 0, seconds: 10.0 })
        }
    }

    #[test]
    fn the_capacity_is_found_to_two_percent() {
        for capacity in [9_000.0, 54_321.0, 1_000_000.0] {
            let Found { trial, sender_limit } = highest(path(capacity, 1e9), path(capacity, 1e9)).unwrap();
            assert!((0.97 * capacity..=capacity).contains(&trial.rate()), "{trial:?} of {capacity}");
            assert!(!sender_limit, "of {capacity}");
        }
    }

    #[test]
    fn a_path_faster_than_the_sender_is_as_fast_as_the_sender() {
        let found = highest(path(1e9, 300_000.0), path(1e9, 300_000.0)).unwrap();
        assert_eq!((found.trial.rate(), found.sender_limit), (300_000.0, true));
    }

    #[test]
    fn a_sender_that_cannot_make_the_next_rate_is_the_limit() {
        // It loses what it cannot make at all.
        let short = |rate: f64| path(if rate > 500_000.0 { 0.0 } else { 1e9 }, 300_000.0)(rate);
        let found = highest(short, path(1e9, 300_000.0)).unwrap();
        assert_eq!((found.trial.rate(), found.sender_limit), (300_000.0, true));
        // It keeps up for a moment only.
        let found = highest(path(200_000.0, 1e9), path(1e9, 100_000.0)).unwrap();
        assert_eq!((found.trial.rate(), found.sender_limit), (100_000.0, true));
        // The path carries what it can make, but not for long.
        let found = highest(path(1e9, 300_000.0), path(200_000.0, 1e9)).unwrap();
        assert!(!found.sender_limit && found.trial.rate() > 190_000.0, "{found:?}");
    }

    #[test]
    fn what_passed_for_a_moment_only_is_lowered() {
        let found = highest(path(100_000.0, 1e9), path(80_000.0, 1e9)).unwrap().trial.rate();
        assert!((75_000.0..=80_000.0).contains(&found), "{found}");
    }

    #[test]
    fn a_path_that_carries_nothing_is_an_error() {
        let error = highest(path(0.0, 1e9), path(0.0, 1e9)).unwrap_err().to_string();
        assert!(error.contains("lost less than 0.1 %"), "{error}");
    }

    #[test]
    fn an_early_failure_is_doubted() {
        let mut tries = 0;
        let short = |rate: f64| {
            tries += 1;
            // The machine was busy when 16,000 were tried for the first time.
            let capacity = if (2..5).contains(&tries) { 0.0 } else { 200_000.0 };
            path(capacity, 1e9)(rate)
        };
        let found = highest(short, path(200_000.0, 1e9)).unwrap().trial.rate();
        assert!((0.97 * 200_000.0..=200_000.0).contains(&found), "{found}");
    }

    #[test]
    fn stalls_of_two_tries_do_not_count() {
        let mut tries = 0;
        let short = |rate: f64| {
            tries += 1;
            let capacity = if tries % 3 != 0 { 0.0 } else { 50_000.0 };
            path(capacity, 1e9)(rate)
        };
        let found = highest(short, path(50_000.0, 1e9)).unwrap().trial.rate();
        assert!(found > 48_000.0, "{found}");
    }
}
