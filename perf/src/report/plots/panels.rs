//! What the bars of a run show: one panel for each scenario, one bar for each program.

use crate::record::{Metric, Run};
use crate::stats::Spread;
use crate::summary::{self, Group, Row};

/// Several panels under one title.
pub struct Sheet {
    /// What they have in common.
    pub title: &'static str,
    /// How to read them.
    pub legend: String,
    /// In the order of the scenarios.
    pub panels: Vec<Panel>,
}

/// Bars on one scale.
pub struct Panel {
    /// What was done, and the unit.
    pub title: String,
    /// Beside the title: what is not on the scale.
    pub note: String,
    /// One for each program.
    pub bars: Vec<Bar>,
}

/// One program.
pub struct Bar {
    /// Its name.
    pub program: String,
    /// The figure over the rounds.
    pub spread: Option<Spread>,
    /// A larger figure of which the first is a part.
    pub whole: Option<f64>,
    /// What to write behind the bar.
    pub text: String,
}

/// What got through.
pub fn throughput(run: &Run) -> Sheet {
    let groups = summary::groups(run);
    let panels = groups.iter().filter(|group| group.metric.more_is_better()).map(|group| {
        // The link itself would press all others into a corner.
        let (plain, tunnels): (Vec<&Row>, Vec<&Row>) =
            group.rows.iter().partition(|row| row.program == "plain" && group.rows.len() > 1);
        let link = plain.first().and_then(|row| row.figure.as_ref().ok());
        Panel {
            title: panel_title(group, group.metric),
            note: link.map_or(String::new(), |spread| {
                format!("the link itself: {}", group.metric.show(spread.median))
            }),
            bars: tunnels.into_iter().map(|row| bar(row, group.metric)).collect(),
        }
    });
    Sheet {
        title: "Throughput: more is better",
        legend: match summary::note(&groups) {
            None => "bar: median; line: smallest to largest round".into(),
            Some(_) => {
                "bar: median; line: smallest to largest round; ≥: the sender could not make more".into()
            }
        },
        panels: panels.collect(),
    }
}

/// What it cost.
pub fn cost(run: &Run) -> Sheet {
    let groups = summary::groups(run);
    let mut panels: Vec<Panel> = Vec::new();
    // For a fixed rate and tiny packets a GB is no measure of work that anybody has.
    for group in groups.iter().filter(|group| !matches!(&*group.scenario, "udp" | "small")) {
        let bars: Vec<Bar> = group.rows.iter().filter_map(|row| cost_bar(run, group, row)).collect();
        if bars.iter().any(|bar| bar.spread.is_some()) {
            panels.push(Panel { title: panel_title(group, Metric::Cpu), note: String::new(), bars });
        }
    }
    if let Some(group) = groups.iter().find(|group| group.scenario == "peers") {
        let with_it = group.rows.iter().filter(|row| row.other(Metric::Memory).is_some());
        let bars: Vec<Bar> = with_it.map(|row| other_bar(run, group, row, Metric::Memory)).collect();
        let note = "the larger end".into();
        panels.push(Panel { title: "Memory, 200 peers and TCP [peak MiB]".into(), note, bars });
    }
    Sheet {
        title: "Cost: less is better",
        legend:
            "dark: the program's processes on both ends; light: the whole machine, with kernel and iperf3"
                .into(),
        panels,
    }
}

fn panel_title(group: &Group, metric: Metric) -> String {
    format!("{} [{}]", summary::title(&group.scenario), metric.title())
}

fn bar(row: &Row, metric: Metric) -> Bar {
    let text = match &row.figure {
        Ok(spread) => format!("{}{}", row.mark, metric.show(spread.median)),
        Err(_) if row.failed > 0 => "failed".into(),
        Err(_) => "not there".into(),
    };
    Bar { program: row.program.clone(), spread: row.figure.clone().ok(), whole: None, text }
}

fn cost_bar(run: &Run, group: &Group, row: &Row) -> Option<Bar> {
    let whole = row.other(Metric::MachineCpu);
    if row.program == "plain" || whole.is_none() && row.other(Metric::Cpu).is_none() {
        return None;
    }
    let mut bar = other_bar(run, group, row, Metric::Cpu);
    bar.whole = whole;
    if let Some(whole) = whole {
        let whole = Metric::MachineCpu.show(whole);
        bar.text = if bar.spread.is_some() { format!("{} of {whole}", bar.text) } else { whole };
    }
    Some(bar)
}

fn other_bar(run: &Run, group: &Group, row: &Row, metric: Metric) -> Bar {
    let spread = Spread::of(run.values(&group.scenario, &row.program, metric).into_values());
    let text = spread.map_or(String::new(), |spread| metric.show(spread.median));
    Bar { program: row.program.clone(), spread, whole: None, text }
}
