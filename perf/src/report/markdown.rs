//! The report's text.

use std::fmt::Write as _;

use crate::bench::targets;
use crate::record::{Metric, Run};
use crate::stats::Spread;
use crate::summary::{self, Compared, Group, Trend};

/// The whole report; `plots` are files beside it.
pub fn text(run: &Run, before: Option<&Run>, plots: &[&str]) -> String {
    let mut text = format!("# Run of {}\n\n", run.started);
    for line in run.machine.lines() {
        let _ = writeln!(text, "- {line}");
    }
    let _ = writeln!(
        text,
        "- `{}`: {} rounds, {} s each; every figure is the median of the rounds, with the smallest and the largest",
        run.command, run.rounds, run.seconds
    );
    for program in &run.programs {
        let what = match (&program.version, &program.missing) {
            (_, Some(reason)) => format!("**not measured**: {reason}"),
            (version, None) => version.clone().unwrap_or_default(),
        };
        let _ = writeln!(text, "- {}: {what}", program.name);
    }
    for plot in plots {
        let _ = writeln!(text, "\n![{}]({plot})", plot.trim_end_matches(".svg"));
    }
    targets_table(&mut text, run);
    let groups = summary::groups(run);
    figures_table(&mut text, run, &groups);
    ratios_table(&mut text, run, &groups);
    for metric in [Metric::Cpu, Metric::MachineCpu, Metric::Memory, Metric::RttTail] {
        others_table(&mut text, run, &groups, metric);
    }
    if let Some(before) = before {
        change_table(&mut text, run, before);
    }
    failures(&mut text, run);
    text
}

fn targets_table(text: &mut String, run: &Run) {
    // A path between two machines may be called like the program, and is not what the targets are about.
    if run.is_of_a_path() {
        return;
    }
    let verdicts = targets::judge(run);
    if !run.programs.iter().any(|program| program.name == "warren") || verdicts.is_empty() {
        return;
    }
    text.push_str(
        "\n## Targets\n\n| target | must | goal | measured | verdict |\n| --- | --- | --- | --- | --- |\n",
    );
    for verdict in verdicts {
        row(text, verdict.row().iter());
    }
}

fn figures_table(text: &mut String, run: &Run, groups: &[Group]) {
    text.push_str("\n## Figures\n\n");
    head(text, run, "scenario");
    for group in groups {
        let title = format!("{} [{}]", summary::title(&group.scenario), group.metric.title());
        let cells = group.rows.iter().map(|row| match &row.figure {
            Ok(Spread { median, min, max }) => {
                let show = |value: &f64| group.metric.show(*value);
                format!("**{}{}** ({}–{})", row.mark, show(median), show(min), show(max))
            }
            Err(_) if row.failed > 0 => "failed".into(),
            Err(_) => "missing".into(),
        });
        row(text, std::iter::once(title).chain(cells));
    }
    if let Some(note) = summary::note(groups) {
        let _ = writeln!(text, "\n{note}");
    }
}

fn ratios_table(text: &mut String, run: &Run, groups: &[Group]) {
    let Some(first) = run.measured().next() else { return };
    if run.measured().count() < 2 {
        return;
    }
    let _ = writeln!(
        text,
        "\n## {} against the others\n\nIts figure divided by theirs of the same round.\n",
        first.name
    );
    head(text, run, "scenario");
    for group in groups {
        let cells = group.rows.iter().map(|row| match row.ratio {
            Some(Spread { median, min, max }) => {
                format!("**{}{median:.2}×** ({min:.2}–{max:.2})", row.ratio_mark)
            }
            None => String::new(),
        });
        row(text, std::iter::once(summary::title(&group.scenario).to_owned()).chain(cells));
    }
}

fn others_table(text: &mut String, run: &Run, groups: &[Group], metric: Metric) {
    let with_it: Vec<&Group> =
        groups.iter().filter(|group| group.rows.iter().any(|row| row.other(metric).is_some())).collect();
    if with_it.is_empty() {
        return;
    }
    let what = match metric {
        Metric::Cpu => "CPU-seconds of the program's processes on both ends for each GB of payload",
        Metric::MachineCpu => {
            "CPU-seconds of the whole machine for each GB of payload: with the kernel's part and the traffic \
             generator's"
        }
        Metric::Memory => "Peak memory of the larger end since its start, MiB",
        _ => "99 % of round trips took no longer, µs",
    };
    let _ = writeln!(text, "\n## {}\n\n{what}.\n", metric.title());
    head(text, run, "scenario");
    for group in with_it {
        let cells =
            group.rows.iter().map(|row| row.other(metric).map_or(String::new(), |value| metric.show(value)));
        row(text, std::iter::once(summary::title(&group.scenario).to_owned()).chain(cells));
    }
}

fn change_table(text: &mut String, run: &Run, before: &Run) {
    let Some(compared) = Compared::of(before, run) else { return };
    let title = if compared.is_one() {
        format!("Change of {} since {}", compared.title(), before.started)
    } else {
        format!("{} of {}", compared.title(), before.started)
    };
    let _ = writeln!(
        text,
        "\n## {title}\n\nCommit {} there, {} here. What lies within the spread of the rounds says nothing.",
        before.machine.commit, run.machine.commit
    );
    if let Some(Spread { median, min, max }) = summary::drift(before, run) {
        let _ = writeln!(
            text,
            "The other programs are the same, so what their throughput did was the machine: {median:+.1} % \
             ({min:+.1} to {max:+.1} %)."
        );
    }
    text.push_str("\n| scenario | was | is | change | |\n| --- | ---: | ---: | ---: | --- |\n");
    for change in summary::changes(before, run, compared) {
        let verdict = match change.verdict() {
            Trend::Better => "better",
            Trend::Worse => "**worse**",
            Trend::Same => "within the spread",
        };
        let [was, is] = change.show();
        let cells = [
            format!("{} [{}]", summary::title(&change.scenario), change.metric.title()),
            was,
            is,
            format!("{:+.1} %", change.percent(change.after.median)),
            verdict.into(),
        ];
        row(text, cells.iter());
    }
}

fn failures(text: &mut String, run: &Run) {
    let failed: Vec<_> = run.samples.iter().filter_map(|sample| sample.failed.as_ref()).collect();
    if failed.is_empty() {
        return;
    }
    text.push_str("\n## Failures\n\n");
    for reason in failed {
        let _ = writeln!(text, "- {}", reason.lines().next().unwrap_or_default());
    }
}

fn head(text: &mut String, run: &Run, corner: &str) {
    let names = run.programs.iter().map(|program| program.name.as_str());
    row(text, std::iter::once(corner).chain(names));
    row(text, std::iter::once("---").chain(run.programs.iter().map(|_| "---:")));
}

fn row(text: &mut String, cells: impl Iterator<Item = impl AsRef<str>>) {
    for cell in cells {
        let _ = write!(text, "| {} ", cell.as_ref().replace('|', "\\|").replace('\n', " "));
    }
    text.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run_of;

    #[test]
    fn the_report_has_targets_figures_and_ratios() {
        let run = run_of(&[
            ("tcp1", "warren", Metric::Throughput, &[5.0, 5.4, 5.2, 5.2, 5.2]),
            ("tcp1", "wireguard-go", Metric::Throughput, &[2.5, 2.7, 2.6, 2.6, 2.6]),
        ]);
        let text = text(&run, None, &["throughput.svg"]);
        assert!(
            text.contains("| TCP, one stream vs wireguard-go | ≥ 1.6× | ≥ 2.2× | 2.00× | met |"),
            "{text}"
        );
        assert!(text.contains("| TCP, one stream [Gbit/s] | **5.20** (5.00–5.40) | **2.60** (2.50–2.70) |"));
        assert!(text.contains("| TCP, one stream |  | **2.00×** (2.00–2.00) |"), "{text}");
        assert!(text.contains("![throughput](throughput.svg)"));
    }

    #[test]
    fn a_rate_that_the_sender_limits_is_marked_and_explained() {
        let mut run = run_of(&[
            ("small", "warren", Metric::PacketRate, &[351_000.0; 2]),
            ("small", "plain", Metric::PacketRate, &[702_000.0; 2]),
        ]);
        assert!(!text(&run, None, &[]).contains("≥: "));
        run.samples[2].figures.at_least = true;
        let text = text(&run, None, &[]);
        assert!(text.contains("| **351** (351–351) | **≥ 702** (702–702) |\n\n≥: in some round"), "{text}");
        assert!(text.contains("|  | **≤ 0.50×** (0.50–0.50) |"), "{text}");
    }

    #[test]
    fn a_change_within_the_spread_says_so() {
        let before = run_of(&[("tcp1", "warren", Metric::Throughput, &[4.0, 5.0, 6.0])]);
        let after = run_of(&[("tcp1", "warren", Metric::Throughput, &[4.5, 5.5, 6.5])]);
        let text = text(&after, Some(&before), &[]);
        assert!(text.contains("| 5.00 | 5.50 | +10.0 % | within the spread |"), "{text}");
        assert!(text.contains("\n## Change of warren since "), "{text}");
    }

    #[test]
    fn two_paths_of_the_same_machines_are_compared() {
        let plain = run_of(&[("tcp1", "plain", Metric::Throughput, &[8.0, 8.0])]);
        let mut warren = run_of(&[("tcp1", "warren", Metric::Throughput, &[6.0, 6.0])]);
        warren.command = "warren-perf client 10.9.0.2 --label warren".into();
        let text = text(&warren, Some(&plain), &[]);
        assert!(text.contains(&format!("\n## warren against plain of {}\n", plain.started)), "{text}");
        assert!(text.contains("| TCP, one stream [Gbit/s] | 8.00 | 6.00 | -25.0 % | **worse** |"), "{text}");
        assert!(!text.contains("## Targets"), "{text}");
    }
}
