//! The plots, each an SVG of its own.

mod bars;
mod change;
mod latency;
mod panels;
mod style;

use anyhow::Result;

use crate::record::Run;

/// A finished plot.
pub struct Plot {
    /// The name of its file.
    pub name: &'static str,
    /// The document.
    pub svg: String,
}

/// All plots that a run has figures for; with an earlier run, also what changed since.
pub fn draw(run: &Run, before: Option<&Run>) -> Result<Vec<Plot>> {
    let drawn = [
        ("throughput.svg", bars::draw(&panels::throughput(run))?),
        ("cost.svg", bars::draw(&panels::cost(run))?),
        ("latency.svg", latency::draw(run)?),
        ("change.svg", before.map(|before| change::draw(before, run)).transpose()?.flatten()),
    ];
    Ok(drawn.into_iter().filter_map(|(name, svg)| Some(Plot { name, svg: svg? })).collect())
}

/// What plotters complains of is drawing into memory, which does not fail.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("drawing: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Metric;
    use crate::record::tests::run_of;

    fn run() -> Run {
        let mut run = run_of(&[
            ("tcp1", "warren", Metric::Throughput, &[5.0, 5.2]),
            ("tcp1", "plain", Metric::Throughput, &[20.0, 21.0]),
            ("tcp1", "warren", Metric::Cpu, &[2.0, 2.1]),
            ("rtt", "warren", Metric::Rtt, &[60.0]),
        ]);
        run.samples.last_mut().unwrap().figures.round_trips_us = (50..90).collect();
        run
    }

    #[test]
    fn what_was_measured_is_drawn_and_nothing_else() {
        let names = |run: &Run, before: Option<&Run>| {
            draw(run, before).unwrap().into_iter().map(|plot| plot.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&run(), None), ["throughput.svg", "cost.svg", "latency.svg"]);
        assert_eq!(names(&run(), Some(&run())).last(), Some(&"change.svg"));
        assert!(names(&run_of(&[]), None).is_empty());
    }

    #[test]
    fn two_paths_of_the_same_machines_are_compared() {
        let plain = run_of(&[("tcp1", "plain", Metric::Throughput, &[8.0, 8.0])]);
        let plots = draw(&run(), Some(&plain)).unwrap();
        let change = plots.iter().find(|plot| plot.name == "change.svg").expect("a plot of the change");
        assert!(change.svg.contains("warren against plain: change from "), "{}", change.svg);
    }

    #[test]
    fn a_plot_names_programs_and_figures() {
        let svg = &draw(&run(), None).unwrap()[0].svg;
        for text in ["TCP, one stream", "warren", "5.10", "20.5"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }
}
