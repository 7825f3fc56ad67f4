//! The tables at the end, for a terminal.

use comfy_table::{CellAlignment, LineStyle, Table, presets};

use super::targets::Verdict;
use crate::record::{Metric, Run};
use crate::stats::Spread;
use crate::summary::{self, Group, Row};

/// Everything measured: a block of rows for each scenario, and what there is to note.
pub fn results(run: &Run) -> String {
    let first = run.measured().next().map_or("", |program| &program.name);
    let mut table = new_table();
    table.set_header([
        "scenario",
        "program",
        "median",
        "min … max",
        &format!("{first} is"),
        "CPU-s/GB",
        "of the machine",
        "peak MiB",
    ]);
    let groups = summary::groups(run);
    for group in &groups {
        for (at, row) in group.rows.iter().enumerate() {
            let title = format!("{} [{}]", summary::title(&group.scenario), group.metric.title());
            table.add_row(cells(group, row, if at == 0 { title } else { String::new() }));
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    summary::note(&groups).map_or(table.to_string(), |note| format!("{table}\n{note}"))
}

fn cells(group: &Group, row: &Row, title: String) -> Vec<String> {
    let other = |metric: Metric| row.other(metric).map_or(String::new(), |value| metric.show(value));
    let (median, range) = match &row.figure {
        Ok(Spread { median, min, max }) => {
            let show = |value| group.metric.show(value);
            (format!("{}{}", row.mark, show(*median)), format!("{} … {}", show(*min), show(*max)))
        }
        // Why was said at the start, and is in the JSON.
        Err(_) if row.failed == 0 => ("missing".into(), String::new()),
        Err(reason) => ("failed".into(), shortened(reason)),
    };
    let failed = match (&row.figure, row.failed) {
        (Err(_), _) | (_, 0) => String::new(),
        (_, number) => format!(" ({number} failed)"),
    };
    vec![
        title,
        format!("{}{failed}", row.program),
        median,
        range,
        row.ratio.map_or(String::new(), |ratio| format!("{}{:.2}×", row.ratio_mark, ratio.median)),
        other(Metric::Cpu),
        other(Metric::MachineCpu),
        other(Metric::Memory),
    ]
}

/// The targets.
pub fn verdicts(verdicts: &[Verdict]) -> Table {
    let mut table = new_table();
    table.set_header(["target", "must", "goal", "measured", "verdict"]);
    for verdict in verdicts {
        table.add_row(verdict.row().map(|cell| shortened(&cell)));
    }
    table
}

/// A line around the whole and one below the header; none between rows.
fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table
}

/// Reasons may be long; the whole of them was said when it happened, and is in the JSON.
fn shortened(text: &str) -> String {
    const MOST: usize = 64;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= MOST {
        return line.to_owned();
    }
    line.chars().take(MOST - 1).chain(['…']).collect()
}
