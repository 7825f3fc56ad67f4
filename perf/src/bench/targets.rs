//! What Warren promises of its speed, judged by a run.

use super::options::ENOUGH_ROUNDS;
use crate::record::{Metric, Run};
use crate::stats::{self, Spread};
use crate::summary;

/// The program that is judged.
const WARREN: &str = "warren";
const GO: &str = "wireguard-go";
const GOTATUN: &str = "gotatun";
const BORINGTUN: &str = "boringtun";

/// One figure and what it has to be.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What is measured, for people.
    pub figure: &'static str,
    what: What,
    /// What it must be.
    pub must: Bound,
    /// What it should be, where that is more.
    pub goal: Option<Bound>,
}

/// How a figure comes about. A figure is the median over the rounds, unless it says otherwise.
#[derive(Debug, Clone, Copy)]
enum What {
    /// Warren's value by that of another program in the same round.
    Versus(&'static str, Metric, &'static str),
    /// Warren's value in one scenario by that in another, in the same round.
    Across(&'static str, Metric, &'static str),
    /// The largest of Warren's own values: what must not happen in a single round.
    Peak(&'static str, Metric),
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

/// The targets, from the table that the project was given.
const TARGETS: [Target; 12] = [
    versus("TCP, one stream", "tcp1", Metric::Throughput, GO, Bound::AtLeast(1.6), Some(Bound::AtLeast(2.2))),
    versus(
        "TCP, four streams",
        "tcp4",
        Metric::Throughput,
        GO,
        Bound::AtLeast(1.5),
        Some(Bound::AtLeast(2.2)),
    ),
    versus("TCP, one stream", "tcp1", Metric::Throughput, GOTATUN, Bound::AtLeast(5.0), None),
    versus("TCP, one stream", "tcp1", Metric::Throughput, BORINGTUN, Bound::AtLeast(9.0), None),
    versus("CPU-seconds per GB", "tcp1", Metric::Cpu, GO, Bound::AtMost(0.65), Some(Bound::AtMost(0.45))),
    versus("idle round trip", "rtt", Metric::Rtt, GO, Bound::AtMost(0.6), None),
    versus("idle round trip", "rtt", Metric::Rtt, BORINGTUN, Bound::AtMost(1.0), None),
    own("UDP 1372 B at 300 Mbit/s, % lost", What::Peak("udp", Metric::Loss), Bound::AtMost(0.0)),
    versus("UDP 1372 B, highest rate", "udp-max", Metric::PacketRate, GO, Bound::AtLeast(1.5), None),
    versus("UDP 64 B, highest rate", "small", Metric::PacketRate, GO, Bound::AtLeast(1.5), None),
    own(
        "TCP beside 200 idle peers vs with 1",
        What::Across("peers", Metric::Throughput, "tcp1"),
        Bound::AtLeast(0.95),
    ),
    own("peak MiB of memory, 200 peers", What::Peak("peers", Metric::Memory), Bound::AtMost(64.0)),
];

const fn versus(
    figure: &'static str,
    scenario: &'static str,
    metric: Metric,
    other: &'static str,
    must: Bound,
    goal: Option<Bound>,
) -> Target {
    Target { figure, what: What::Versus(scenario, metric, other), must, goal }
}

const fn own(figure: &'static str, what: What, must: Bound) -> Target {
    Target { figure, what, must, goal: None }
}

/// What became of a target.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Which.
    pub target: Target,
    /// The figure, or why there is none.
    pub value: Result<Figure, String>,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Over all rounds.
    pub value: f64,
    /// The rounds in which everything that it takes was measured. One that failed is none.
    pub rounds: usize,
    /// What stands before it, see [`summary::note`].
    mark: &'static str,
}

impl Figure {
    /// Whether it says enough for a verdict.
    fn is_enough(self) -> bool {
        self.rounds >= ENOUGH_ROUNDS as usize
    }
}

/// Judges a run by the targets whose scenarios are in it.
pub fn judge(run: &Run) -> Vec<Verdict> {
    let scenarios = run.scenarios();
    let asked = |target: &Target| target.what.scenarios().iter().all(|name| scenarios.contains(name));
    let verdict = |target: Target| Verdict { value: target.what.value(run), target };
    TARGETS.into_iter().filter(asked).map(verdict).collect()
}

/// How many targets there are.
pub const fn number() -> usize {
    TARGETS.len()
}

impl Target {
    /// [`Target::figure`], and beside what.
    pub fn title(&self) -> String {
        match self.what {
            What::Versus(_, _, other) => format!("{} vs {other}", self.figure),
            _ => self.figure.into(),
        }
    }

    /// Whether the value is a ratio.
    fn is_ratio(&self) -> bool {
        matches!(self.what, What::Versus(..) | What::Across(..))
    }
}

impl What {
    /// Those it needs.
    fn scenarios(self) -> Vec<&'static str> {
        match self {
            Self::Across(scenario, _, base) => vec![scenario, base],
            Self::Versus(scenario, ..) | Self::Peak(scenario, _) => vec![scenario],
        }
    }

    fn value(self, run: &Run) -> Result<Figure, String> {
        let own = |scenario, metric| run.values(scenario, WARREN, metric);
        let (scenario, metric) = match self {
            Self::Versus(scenario, metric, _)
            | Self::Across(scenario, metric, _)
            | Self::Peak(scenario, metric) => (scenario, metric),
        };
        let values = own(scenario, metric);
        if values.is_empty() {
            return Err(run.why_not(scenario, WARREN));
        }
        let (figures, other) = match self {
            Self::Versus(_, _, other) => {
                (stats::ratios(&values, &run.values(scenario, other, metric)), (scenario, other))
            }
            Self::Across(_, _, base) => (stats::ratios(&values, &own(base, metric)), (base, WARREN)),
            Self::Peak(..) => (values.into_values().collect(), (scenario, WARREN)),
        };
        let rounds = figures.len();
        let spread = Spread::of(figures).ok_or_else(|| run.why_not(other.0, other.1))?;
        let value = if let Self::Peak(..) = self { spread.max } else { spread.median };
        let mark = match self {
            Self::Versus(_, _, other) => {
                summary::ratio_mark(run.at_least(scenario, WARREN), run.at_least(scenario, other))
            }
            _ => "",
        };
        Ok(Figure { value, rounds, mark })
    }
}

impl Bound {
    /// Whether a value keeps to it.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
        }
    }

    fn show(self, unit: &str) -> String {
        match self {
            Self::AtLeast(limit) => format!("≥ {limit}{unit}"),
            Self::AtMost(limit) => format!("≤ {limit}{unit}"),
        }
    }
}

impl Verdict {
    /// Whether the figure is there, of enough rounds, and is what it must be.
    pub fn met(&self) -> bool {
        self.keeps_to(self.target.must)
    }

    /// Whether it is even what it should be; `None` where that is no more than it must be.
    pub fn goal_met(&self) -> Option<bool> {
        self.target.goal.map(|goal| self.keeps_to(goal))
    }

    fn keeps_to(&self, bound: Bound) -> bool {
        self.value.as_ref().is_ok_and(|figure| figure.is_enough() && bound.holds(figure.value))
    }

    /// In columns: figure, must, goal, measured, verdict.
    pub fn row(&self) -> [String; 5] {
        let unit = if self.target.is_ratio() { "×" } else { "" };
        let measured = match &self.value {
            Ok(Figure { value, mark, .. }) => format!("{mark}{value:.2}{unit}"),
            Err(reason) => format!("not measured: {reason}"),
        };
        let verdict = match (&self.value, self.met(), self.goal_met()) {
            (_, true, Some(true)) => "met, goal too".into(),
            (_, true, _) => "met".into(),
            (Ok(figure), ..) if !figure.is_enough() => {
                format!("NOT judged: {} of {ENOUGH_ROUNDS} rounds", figure.rounds)
            }
            _ => "NOT met".into(),
        };
        [
            self.target.title(),
            self.target.must.show(unit),
            self.target.goal.map(|goal| goal.show(unit)).unwrap_or_default(),
            measured,
            verdict,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run_of;

    fn verdict(run: &Run, title: &str) -> Verdict {
        judge(run).into_iter().find(|verdict| verdict.target.title() == title).unwrap()
    }

    #[test]
    fn ratios_are_judged_pair_by_pair() {
        // The machine became twice as fast after the first round: the ratio did not.
        let run = run_of(&[
            ("tcp1", "warren", Metric::Throughput, &[2.0, 4.0, 4.0, 4.0, 4.0]),
            ("tcp1", "wireguard-go", Metric::Throughput, &[1.0, 2.0, 2.5, 2.0, 2.5]),
        ]);
        let verdict = verdict(&run, "TCP, one stream vs wireguard-go");
        assert_eq!(verdict.value, Ok(Figure { value: 2.0, rounds: 5, mark: "" }));
        assert!(verdict.met());
        assert_eq!(verdict.goal_met(), Some(false));
        assert_eq!(verdict.row(), ["TCP, one stream vs wireguard-go", "≥ 1.6×", "≥ 2.2×", "2.00×", "met"]);
    }

    #[test]
    fn less_can_be_what_is_wanted() {
        let run = run_of(&[
            ("rtt", "warren", Metric::Rtt, &[70.0; 5]),
            ("rtt", "wireguard-go", Metric::Rtt, &[100.0; 5]),
            ("rtt", "boringtun", Metric::Rtt, &[70.0; 5]),
        ]);
        assert!(!verdict(&run, "idle round trip vs wireguard-go").met());
        assert!(verdict(&run, "idle round trip vs boringtun").met());
    }

    #[test]
    fn one_bad_round_counts_where_there_must_be_none() {
        let run = run_of(&[
            ("udp", "warren", Metric::Loss, &[0.0, 0.0, 0.0, 0.0, 0.5]),
            ("peers", "warren", Metric::Memory, &[10.0, 10.0, 10.0, 10.0, 65.0]),
        ]);
        assert!(!verdict(&run, "UDP 1372 B at 300 Mbit/s, % lost").met());
        assert!(!verdict(&run, "peak MiB of memory, 200 peers").met());
        let run = run_of(&[("udp", "warren", Metric::Loss, &[0.0; 5])]);
        assert!(verdict(&run, "UDP 1372 B at 300 Mbit/s, % lost").met());
    }

    #[test]
    fn too_few_rounds_are_no_verdict() {
        let rounds = |warren: &[f64], go: &[f64]| {
            let run = run_of(&[
                ("tcp1", "warren", Metric::Throughput, warren),
                ("tcp1", "wireguard-go", Metric::Throughput, go),
            ]);
            verdict(&run, "TCP, one stream vs wireguard-go")
        };
        assert!(rounds(&[4.0; 5], &[1.0; 5]).met());
        let short = rounds(&[4.0], &[1.0]);
        assert!(!short.met());
        assert_eq!(short.goal_met(), Some(false));
        assert_eq!(short.row()[3..], ["4.00×", "NOT judged: 1 of 5 rounds"]);
    }

    #[test]
    fn a_round_that_failed_is_none() {
        let mut run = run_of(&[
            ("tcp1", "warren", Metric::Throughput, &[4.0; 5]),
            ("tcp1", "wireguard-go", Metric::Throughput, &[1.0; 5]),
        ]);
        let failed = run.samples.last_mut().unwrap();
        failed.figures = crate::record::Figures::default();
        failed.failed = Some("it ended".into());
        let verdict = verdict(&run, "TCP, one stream vs wireguard-go");
        assert!(!verdict.met());
        assert_eq!(verdict.row()[4], "NOT judged: 4 of 5 rounds");
    }

    #[test]
    fn what_was_not_measured_is_not_met_and_says_why() {
        let mut run = run_of(&[("tcp1", "warren", Metric::Throughput, &[2.0])]);
        run.programs.push(crate::record::ProgramNote {
            name: "gotatun".into(),
            version: None,
            missing: Some("no gotatun on PATH".into()),
        });
        let verdict = verdict(&run, "TCP, one stream vs gotatun");
        assert!(!verdict.met());
        assert_eq!(verdict.row()[3], "not measured: no gotatun on PATH");
        assert_eq!(verdict.row()[4], "NOT met");
    }

    #[test]
    fn what_was_not_asked_for_is_not_judged() {
        let run = run_of(&[("peers", "warren", Metric::Throughput, &[5.0; 5])]);
        let titles: Vec<String> = judge(&run).iter().map(|verdict| verdict.target.title()).collect();
        assert_eq!(titles, ["peak MiB of memory, 200 peers"], "the other one needs tcp1 as well");
    }

    #[test]
    fn a_ratio_with_a_rate_that_the_sender_limits_is_marked() {
        let mut run = run_of(&[
            ("small", "warren", Metric::PacketRate, &[4.0; 5]),
            ("small", "wireguard-go", Metric::PacketRate, &[1.0; 5]),
        ]);
        let measured = |run: &Run| verdict(run, "UDP 64 B, highest rate vs wireguard-go").row()[3].clone();
        assert_eq!(measured(&run), "4.00×");
        run.samples[0].figures.at_least = true;
        assert_eq!(measured(&run), "≥ 4.00×");
        run.samples[5].figures.at_least = true;
        assert_eq!(measured(&run), "? 4.00×");
    }

    #[test]
    fn peers_are_compared_with_the_same_round_without_them() {
        let run = run_of(&[
            ("peers", "warren", Metric::Throughput, &[4.9; 5]),
            ("tcp1", "warren", Metric::Throughput, &[5.0; 5]),
        ]);
        let verdict = verdict(&run, "TCP beside 200 idle peers vs with 1");
        assert!(verdict.met(), "{verdict:?}");
    }
}
