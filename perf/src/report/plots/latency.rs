//! How long round trips took: the share that was answered within each time.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::drawing;
use super::style::{FAINT, GRID, INK, MARGIN, WIDTH, bold, colour, text};
use crate::record::Run;
use crate::stats::quantile;
use crate::summary;

/// Pixels of a panel, of which there is one for each scenario with round trips.
const PANEL: u32 = 420;
const TOP: u32 = 62;
/// Above the curves of a panel: its title and the legend.
const LEGEND: i32 = 80;

/// Shares at which a curve has a point, in percent: many enough to look smooth, and to show the tail.
const POINTS: u32 = 200;

/// Draws all; `None` if no round trips were measured.
pub fn draw(run: &Run) -> Result<Option<String>> {
    let scenarios: Vec<&str> = run
        .scenarios()
        .into_iter()
        .filter(|scenario| run.measured().any(|program| !run.round_trips(scenario, &program.name).is_empty()))
        .collect();
    if scenarios.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, TOP + PANEL)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let title = "Round trips: further left is better";
        area.draw(&Text::new(title, (MARGIN, 26), bold(20, INK, HPos::Left))).map_err(drawing)?;
        let legend =
            "share of pings that were answered within the time, all rounds together; the figures are medians";
        area.draw(&Text::new(legend, (MARGIN, 48), text(13, FAINT, HPos::Left))).map_err(drawing)?;
        let (_, below) = area.split_vertically(TOP);
        for (panel, scenario) in below.split_evenly((1, scenarios.len())).iter().zip(scenarios) {
            draw_panel(panel, run, scenario)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(Some(svg))
}

fn draw_panel(area: &DrawingArea<SVGBackend<'_>, Shift>, run: &Run, scenario: &str) -> Result<()> {
    let curves: Vec<(&str, Vec<u32>)> = run
        .measured()
        .map(|program| (program.name.as_str(), run.round_trips(scenario, &program.name)))
        .filter(|(_, times)| !times.is_empty())
        .collect();
    let at = |q: f64| curves.iter().filter_map(move |(_, times)| quantile(times, q)).map(f64::from);
    // The last per mille would stretch the axis by a power of ten.
    let left = at(0.0).fold(f64::MAX, f64::min).max(1.0) * 0.8;
    let right = at(0.999).fold(left * 2.0, f64::max) * 1.2;
    area.draw(&Text::new(summary::title(scenario), (MARGIN, 16), bold(14, INK, HPos::Left)))
        .map_err(drawing)?;
    draw_legend(area, &curves)?;
    let mut chart = ChartBuilder::on(area)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .margin_bottom(8)
        .margin_top(LEGEND)
        .x_label_area_size(40)
        .y_label_area_size(44)
        .build_cartesian_2d((left..right).log_scale(), 0.0..100.0)
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_desc("µs")
        .x_labels(8)
        .y_labels(5)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0} %"))
        .label_style(text(12, INK, HPos::Center))
        .draw()
        .map_err(drawing)?;
    for (program, times) in &curves {
        let points = (0..=POINTS).filter_map(|point| {
            let share = f64::from(point) / f64::from(POINTS);
            let time = f64::from(quantile(times, share)?);
            (time <= right).then_some((time, 100.0 * share))
        });
        let colour = colour(program);
        let line = LineSeries::new(points, colour.stroke_width(if *program == "warren" { 3 } else { 2 }));
        chart.draw_series(line).map_err(drawing)?;
    }
    Ok(())
}

/// Names and medians in the colours of the curves, above these: anywhere else some curve passes.
fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, curves: &[(&str, Vec<u32>)]) -> Result<()> {
    let column = (area.dim_in_pixel().0 as i32 - 2 * MARGIN) / 3;
    for (at, (program, times)) in curves.iter().enumerate() {
        let (x, y) = (MARGIN + at as i32 % 3 * column, 40 + at as i32 / 3 * 18);
        let line = PathElement::new([(x, y), (x + 14, y)], colour(program).stroke_width(4));
        area.draw(&line).map_err(drawing)?;
        let label = format!("{program} {} µs", quantile(times, 0.5).unwrap_or_default());
        area.draw(&Text::new(label, (x + 20, y), text(12, INK, HPos::Left))).map_err(drawing)?;
    }
    Ok(())
}
