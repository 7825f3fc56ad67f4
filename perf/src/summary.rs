//! A run in the numbers that tables and plots show: of each scenario one figure, for each program its spread over the
//! rounds and how the first program compares with it.

use crate::record::{Metric, ProgramNote, Run};
use crate::stats::{self, Spread};

/// One scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub scenario: String,
    /// The figure that it is about.
    pub metric: Metric,
    /// One row for each program, also for those that were not measured.
    pub rows: Vec<Row>,
}

/// One program in one scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name.
    pub program: String,
    /// The figure, or why there is none.
    pub figure: Result<Spread, String>,
    /// The first program's figure by this one's, pair by pair; `None` for the first itself.
    pub ratio: Option<Spread>,
    /// What stands before the figure, see [`note`].
    pub mark: &'static str,
    /// What stands before the ratio.
    pub ratio_mark: &'static str,
    /// Rounds of those asked for that gave no figure.
    pub failed: usize,
    /// Medians of what else was measured.
    pub others: Vec<(Metric, f64)>,
}

impl Row {
    /// The median of another figure of the same measurements.
    pub fn other(&self, metric: Metric) -> Option<f64> {
        self.others.iter().find(|(other, _)| *other == metric).map(|(_, value)| *value)
    }
}

/// What stands before a figure, where that is the highest rate that the sender could make.
pub fn mark(at_least: bool) -> &'static str {
    if at_least { "≥ " } else { "" }
}

/// What stands before the ratio of two figures, of which either or both may be such.
pub fn ratio_mark(at_least: bool, other_at_least: bool) -> &'static str {
    match (at_least, other_at_least) {
        (false, false) => "",
        (true, false) => "≥ ",
        (false, true) => "≤ ",
        (true, true) => "? ",
    }
}

/// What such marks mean, if there are any.
pub fn note(groups: &[Group]) -> Option<&'static str> {
    let marked = groups.iter().flat_map(|group| &group.rows).any(|row| !row.mark.is_empty());
    marked.then_some(
        "≥: in some round the sender could not make as much as the program may carry. Ratios with such figures are bounds, \
         too: ≥, ≤, or ? where both are.",
    )
}

/// The figure that a scenario of this name is about.
pub fn headline(scenario: &str) -> Metric {
    match scenario {
        "udp" => Metric::Loss,
        "small" => Metric::PacketRate,
        "rtt" | "rtt-load" => Metric::Rtt,
        _ => Metric::Throughput,
    }
}

/// What a person calls the scenario of this name.
pub fn title(scenario: &str) -> &str {
    match scenario {
        "tcp1" => "TCP, one stream",
        "tcp4" => "TCP, four streams",
        "tcp-reverse" => "TCP, one stream back",
        "bidir" => "TCP both ways, sum",
        "udp" => "UDP, 1372 B at 300 Mbit/s",
        "udp-max" => "UDP, 1372 B, loss < 0.1 %",
        "small" => "UDP, 64 B, loss < 0.1 %",
        "rtt" => "Round trip, idle",
        "rtt-load" => "Round trip beside TCP",
        "peers" => "TCP beside 200 idle peers",
        "vxlan" => "TCP in VXLAN",
        "jumbo" => "TCP, MTU 9000",
        "ipv6" => "TCP, IPv6 in IPv6",
        other => other,
    }
}

/// All scenarios of a run.
pub fn groups(run: &Run) -> Vec<Group> {
    run.scenarios().into_iter().map(|scenario| group(run, scenario)).collect()
}

fn group(run: &Run, scenario: &str) -> Group {
    let metric = headline(scenario);
    let first = run.measured().next().map_or("", |program| &program.name);
    let reference = run.values(scenario, first, metric);
    let first_at_least = run.at_least(scenario, first);
    let row = |program: &str| {
        let values = run.values(scenario, program, metric);
        let is_first = program == first;
        let median = |metric| Spread::of(run.values(scenario, program, metric).into_values());
        let at_least = run.at_least(scenario, program);
        Row {
            program: program.to_owned(),
            mark: mark(at_least),
            ratio_mark: ratio_mark(first_at_least, at_least),
            ratio: if is_first { None } else { Spread::of(stats::ratios(&reference, &values)) },
            failed: run.failures(scenario, program),
            figure: Spread::of(values.into_values()).ok_or_else(|| run.why_not(scenario, program)),
            others: run
                .metrics(scenario)
                .into_iter()
                .filter_map(|metric| Some((metric, median(metric)?.median)))
                .collect(),
        }
    };
    let rows = run.programs.iter().map(|program| row(&program.name)).collect();
    Group { scenario: scenario.to_owned(), metric, rows }
}

/// One figure of a program in two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The scenario's name.
    pub scenario: String,
    /// Which figure.
    pub metric: Metric,
    /// What it was.
    pub before: Spread,
    /// What it is.
    pub after: Spread,
    /// What stands before each, see [`note`].
    marks: [&'static str; 2],
}

/// Which way a figure went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trend {
    /// Every round is better than all before.
    Better,
    /// Every round is worse than all before.
    Worse,
    /// The rounds overlap.
    Same,
}

impl Change {
    /// A value in percent more (or less) than the median was.
    pub fn percent(&self, value: f64) -> f64 {
        100.0 * (value / self.before.median - 1.0)
    }

    /// What it was and what it is, in the unit of the metric.
    pub fn show(&self) -> [String; 2] {
        let show = |mark: &str, spread: Spread| format!("{mark}{}", self.metric.show(spread.median));
        [show(self.marks[0], self.before), show(self.marks[1], self.after)]
    }

    /// Which way it went.
    pub fn verdict(&self) -> Trend {
        let (up, down) = (self.after.min > self.before.max, self.after.max < self.before.min);
        match (up, down, self.metric.more_is_better()) {
            (true, _, true) | (_, true, false) => Trend::Better,
            (true, _, false) | (_, true, true) => Trend::Worse,
            _ => Trend::Same,
        }
    }
}

/// Which program of each of two runs is compared, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared<'a> {
    /// Of the earlier run.
    pub before: &'a str,
    /// Of the later one.
    pub after: &'a str,
}

impl<'a> Compared<'a> {
    /// The later run's first program with itself; where the earlier run has not measured it, with that run's first: two
    /// paths of `client`, say. `None` if either run has measured nothing.
    pub fn of(before: &'a Run, after: &'a Run) -> Option<Self> {
        let after = after.measured().next()?.name.as_str();
        let same = before.measured().find(|program| program.name == after);
        let before = same.or_else(|| before.measured().next())?.name.as_str();
        Some(Self { before, after })
    }

    /// Whether it is one program, whose figures have changed.
    pub fn is_one(self) -> bool {
        self.before == self.after
    }

    /// Both, where they are two.
    pub fn title(self) -> String {
        if self.is_one() { self.after.into() } else { format!("{} against {}", self.after, self.before) }
    }
}

/// What both runs have measured of the programs that are compared: of each scenario the figure, and what it cost. A
/// figure that was 0 has no change in percent.
pub fn changes(before: &Run, after: &Run, compared: Compared<'_>) -> Vec<Change> {
    let mut changes = Vec::new();
    for scenario in after.scenarios() {
        let at_least = [before.at_least(scenario, compared.before), after.at_least(scenario, compared.after)];
        for metric in [headline(scenario), Metric::Cpu] {
            let spread = |run: &Run, program| Spread::of(run.values(scenario, program, metric).into_values());
            let spreads = (spread(before, compared.before), spread(after, compared.after));
            let (Some(before), Some(after)) = spreads else { continue };
            if before.median != 0.0 {
                let scenario = scenario.to_owned();
                let marks = at_least.map(|at_least| mark(at_least && metric.more_is_better()));
                changes.push(Change { scenario, metric, before, after, marks });
            }
        }
    }
    changes
}

/// By how many percent the throughput of the programs other than the first changed: these are the same in both runs,
/// so it tells how much the machine did.
pub fn drift(before: &Run, after: &Run) -> Option<Spread> {
    let itself = |program: &ProgramNote| {
        changes(before, after, Compared { before: &program.name, after: &program.name })
    };
    let changes = after.measured().skip(1).flat_map(itself);
    let throughput = changes.filter(|change| change.metric == Metric::Throughput);
    Spread::of(throughput.map(|change| change.percent(change.after.median)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run_of;

    #[test]
    fn only_rounds_that_do_not_overlap_are_a_change() {
        let change = |metric, before: &[f64], after: &[f64]| {
            let [before, after] = [before, after].map(|values| run_of(&[("tcp1", "warren", metric, values)]));
            changes(&before, &after, Compared::of(&before, &after).unwrap())[0].verdict()
        };
        assert_eq!(change(Metric::Throughput, &[1.0, 2.0], &[2.1, 3.0]), Trend::Better);
        assert_eq!(change(Metric::Throughput, &[1.0, 2.0], &[1.9, 3.0]), Trend::Same);
        assert_eq!(change(Metric::Throughput, &[2.0, 3.0], &[1.0, 1.9]), Trend::Worse);
        assert_eq!(change(Metric::Cpu, &[2.0, 3.0], &[1.0, 1.9]), Trend::Better);
    }

    #[test]
    fn a_program_is_compared_with_itself_or_else_with_the_first_of_the_earlier_run() {
        const ONE: &[f64] = &[1.0];
        let run = |programs: &[&str]| {
            let values = programs.iter().map(|program| ("tcp1", *program, Metric::Throughput, ONE));
            run_of(&values.collect::<Vec<_>>())
        };
        let compared = |before: &Run, after: &Run| Compared::of(before, after).map(Compared::title);
        let (plain, both) = (run(&["plain"]), run(&["warren", "plain"]));
        assert_eq!(compared(&both, &both).as_deref(), Some("warren"));
        assert_eq!(compared(&run(&["plain", "warren"]), &both).as_deref(), Some("warren"));
        assert_eq!(compared(&plain, &both).as_deref(), Some("warren against plain"));
        assert_eq!(compared(&both, &plain).as_deref(), Some("plain"));
        // One that could not be measured is not one to compare with.
        let mut missing = run(&["warren", "plain"]);
        missing.programs[0].missing = Some("not built".into());
        assert_eq!(compared(&missing, &both).as_deref(), Some("warren against plain"));
        assert_eq!(compared(&run(&[]), &both), None);
    }

    #[test]
    fn what_the_others_did_is_the_machines_doing() {
        let run = |go: f64, plain: f64| {
            run_of(&[
                ("tcp1", "warren", Metric::Throughput, &[1.0]),
                ("tcp1", "wireguard-go", Metric::Throughput, &[go]),
                ("tcp1", "plain", Metric::Throughput, &[plain]),
            ])
        };
        let drift = drift(&run(1.0, 10.0), &run(1.5, 15.0)).unwrap();
        assert!((drift.min - 50.0).abs() < 1e-9 && (drift.max - 50.0).abs() < 1e-9, "{drift:?}");
    }

    #[test]
    fn what_the_sender_limits_is_a_bound() {
        let of = |rate: f64| {
            run_of(&[
                ("small", "warren", Metric::PacketRate, &[4000.0, 4000.0]),
                ("small", "plain", Metric::PacketRate, &[rate, rate]),
            ])
        };
        let marks = |run: &Run| {
            let groups = groups(run);
            let rows = groups[0].rows.iter().map(|row| (row.mark, row.ratio_mark));
            (rows.collect::<Vec<_>>(), note(&groups).is_some())
        };
        let mut run = of(8000.0);
        assert_eq!(marks(&run), (vec![("", ""), ("", "")], false));
        // One round is enough.
        run.samples[3].figures.at_least = true;
        assert_eq!(marks(&run), (vec![("", ""), ("≥ ", "≤ ")], true));
        let compared = Compared { before: "plain", after: "plain" };
        assert_eq!(changes(&of(4000.0), &run, compared)[0].show(), ["4.00", "≥ 8.00"]);
        run.samples[0].figures.at_least = true;
        assert_eq!(marks(&run).0, [("≥ ", "? "), ("≥ ", "? ")]);
        run.samples[3].figures.at_least = false;
        assert_eq!(marks(&run).0, [("≥ ", "? "), ("", "≥ ")]);
    }

    #[test]
    fn the_first_program_is_compared_with_the_others() {
        let mut run = run_of(&[
            ("tcp1", "warren", Metric::Throughput, &[4.0, 6.0]),
            ("tcp1", "plain", Metric::Throughput, &[8.0, 24.0]),
        ]);
        let missing = Some("no gotatun on PATH".to_owned());
        run.programs.push(ProgramNote { name: "gotatun".into(), version: None, missing });
        let [Group { scenario, metric, rows }] = &groups(&run)[..] else { panic!("one group") };
        assert_eq!((scenario.as_str(), *metric), ("tcp1", Metric::Throughput));
        assert_eq!(rows[0].figure, Ok(Spread { median: 5.0, min: 4.0, max: 6.0 }));
        assert_eq!(rows[0].ratio, None);
        assert_eq!(rows[1].ratio, Some(Spread { median: 0.375, min: 0.25, max: 0.5 }));
        assert_eq!(rows[2].figure, Err("no gotatun on PATH".into()));
    }
}
