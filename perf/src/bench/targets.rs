//! What Warren promises of its speed, judged by a run.

use crate::record::{Metric, Run};
use crate::stats::{self, Spread};

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

/// How a figure comes about. A figure is the median over the rounds.
#[derive(Debug, Clone, Copy)]
enum What {
    /// Warren's value by that of another program in the same round.
    Versus(&'static str, Metric, &'static str),
    /// Warren's value in one scenario by that in another, in the same round.
    Across(&'static str, Metric, &'static str),
    /// Warren's own value.
    Own(&'static str, Metric),
    /// The largest of Warren's own values.
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
    own("UDP 1372 B at 300 Mbit/s, % lost", What::Own("udp", Metric::Loss), Bound::AtMost(0.0)),
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
    pub value: Result<f64, String>,
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
            Self::Versus(scenario, ..) | Self::Own(scenario, _) | Self::Peak(scenario, _) => vec![scenario],
        }
    }

    fn value(self, run: &Run) -> Result<f64, String> {
        let own = |scenario, metric| run.values(scenario, WARREN, metric);
        let (scenario, metric) = match self {
            Self::Versus(scenario, metric, _)
            | Self::Across(scenario, metric, _)
            | Self::Own(scenario, metric)
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
            Self::Own(..) | Self::Peak(..) => (values.into_values().collect(), (scenario, WARREN)),
        };
        let spread = Spread::of(figures).ok_or_else(|| run.why_not(other.0, other.1))?;
        Ok(if let Self::Peak(..) = self { spread.max } else { spread.median })
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
    /// Whether the figure is there and is what it must be.
    pub fn met(&self) -> bool {
        self.value.as_ref().is_ok_and(|value| self.target.must.holds(*value))
    }

    /// Whether it is even what it should be; `None` where that is no more than it must be.
    pub fn goal_met(&self) -> Option<bool> {
        let goal = self.target.goal?;
        Some(self.value.as_ref().is_ok_and(|value| goal.holds(*value)))
    }

    /// In columns: figure, must, goal, measured, verdict.
    pub fn row(&self) -> [String; 5] {
        let unit = if self.target.is_ratio() { "×" } else { "" };
        let measured = match &self.value {
            Ok(value) => format!("{value:.2}{unit}"),
            Err(reason) => format!("not measured: {reason}"),
        };
        let verdict = match (self.met(), self.goal_met()) {
            (true, Some(true)) => "met, goal too",
            (true, _) => "met",
            (false, _) => "NOT met",
        };
        [
            self.target.title(),
            self.target.must.show(unit),
            self.target.goal.map(|goal| goal.show(unit)).unwrap_or_default(),
            measured,
            verdict.into(),
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
            ("tcp1", "warren", Metric::Throughput, &[2.0, 4.0, 4.0]),
            ("tcp1", "wireguard-go", Metric::Throughput, &[1.0, 2.0, 2.5]),
        ]);
        let verdict = verdict(&run, "TCP, one stream vs wireguard-go");
        assert_eq!(verdict.value, Ok(2.0));
        assert!(verdict.met());
        assert_eq!(verdict.goal_met(), Some(false));
        assert_eq!(verdict.row(), ["TCP, one stream vs wireguard-go", "≥ 1.6×", "≥ 2.2×", "2.00×", "met"]);
    }

    #[test]
    fn less_can_be_what_is_wanted() {
        let run = run_of(&[
            ("rtt", "warren", Metric::Rtt, &[70.0]),
            ("rtt", "wireguard-go", Metric::Rtt, &[100.0]),
            ("rtt", "boringtun", Metric::Rtt, &[70.0]),
        ]);
        assert!(!verdict(&run, "idle round trip vs wireguard-go").met());
        assert!(verdict(&run, "idle round trip vs boringtun").met());
    }

    #[test]
    fn own_values_are_medians_or_peaks() {
        let run = run_of(&[
            ("udp", "warren", Metric::Loss, &[0.0, 0.0, 0.5]),
            ("peers", "warren", Metric::Memory, &[10.0, 10.0, 65.0]),
        ]);
        assert!(verdict(&run, "UDP 1372 B at 300 Mbit/s, % lost").met());
        assert!(!verdict(&run, "peak MiB of memory, 200 peers").met());
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
        let run = run_of(&[("peers", "warren", Metric::Throughput, &[5.0])]);
        let titles: Vec<String> = judge(&run).iter().map(|verdict| verdict.target.title()).collect();
        assert_eq!(titles, ["peak MiB of memory, 200 peers"], "the other one needs tcp1 as well");
    }

    #[test]
    fn peers_are_compared_with_the_same_round_without_them() {
        let run = run_of(&[
            ("peers", "warren", Metric::Throughput, &[4.9, 4.9]),
            ("tcp1", "warren", Metric::Throughput, &[5.0, 5.0]),
        ]);
        let verdict = verdict(&run, "TCP beside 200 idle peers vs with 1");
        assert!(verdict.met(), "{verdict:?}");
    }
}
