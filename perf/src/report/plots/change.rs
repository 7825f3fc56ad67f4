//! What became of each figure from one run to another.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::drawing;
use super::style::{BETTER, FAINT, GRID, INK, MARGIN, WIDTH, WORSE, bold, text};
use crate::record::Run;
use crate::stats::Spread;
use crate::summary::{self, Change, Compared, Trend};

/// Pixels from one figure to the next.
const STEP: i32 = 22;
/// Above them: title, legend, and the numbers of the scale.
const TOP: i32 = 92;
/// For the names on the left, and for the figures on the right.
const NAMES: i32 = 290;
const FIGURES: i32 = 150;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws all figures that both runs have; `None` if there are none.
pub fn draw(before: &Run, after: &Run) -> Result<Option<String>> {
    let Some(compared) = Compared::of(before, after) else { return Ok(None) };
    let changes = summary::changes(before, after, compared);
    if changes.is_empty() {
        return Ok(None);
    }
    let height = TOP + changes.len() as i32 * STEP + MARGIN;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let [from, to] = names(before, after);
        let title = format!("{}: change from {from} to {to}", compared.title());
        area.draw(&Text::new(title, (MARGIN, 26), bold(20, INK, HPos::Left))).map_err(drawing)?;
        let mut legend =
            "dot and line: median and range of the rounds; grey: the rounds before; coloured where they \
                          do not overlap"
                .to_owned();
        if let Some(drift) = summary::drift(before, after) {
            let Spread { median, min, max } = drift;
            legend += &format!(". Others' throughput: {median:+.0} % ({min:+.0} … {max:+.0})");
        }
        area.draw(&Text::new(&*legend, (MARGIN, 48), text(12, FAINT, HPos::Left))).map_err(drawing)?;
        let scale = Scale::of(&changes);
        draw_scale(&area, &scale, height - MARGIN)?;
        for (at, change) in changes.iter().enumerate() {
            draw_change(&area, &scale, change, TOP + at as i32 * STEP + STEP / 2)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(Some(svg))
}

/// The commits say more than the times, where there are two.
fn names<'a>(before: &'a Run, after: &'a Run) -> [&'a str; 2] {
    let commits = [before, after].map(|run| run.machine.commit.as_str());
    let tell = !commits.contains(&"") && commits[0] != commits[1];
    if tell { commits } else { [&before.started, &after.started] }
}

/// Percent to pixels, the same way both ways from 0.
struct Scale {
    most: f64,
}

impl Scale {
    fn of(changes: &[Change]) -> Self {
        let reach = changes.iter().flat_map(|change| {
            let spreads = [change.before, change.after];
            spreads.map(|spread| [spread.min, spread.max].map(|value| change.percent(value).abs()))
        });
        let most = reach.flatten().fold(5.0, f64::max);
        // One that is ten times what it was would hide all the others.
        Self { most: most.min(150.0) * 1.05 }
    }

    fn x(&self, percent: f64) -> i32 {
        let room = f64::from(WIDTH as i32 - NAMES - FIGURES) / 2.0;
        let share = (percent / self.most).clamp(-1.0, 1.0);
        NAMES + (room + share * room).round() as i32
    }

    /// 1, 2 or 5 times a power of ten, so that there are three to six each way.
    fn step(&self) -> f64 {
        let power = 10_f64.powf((self.most / 3.0).log10().floor());
        [5.0, 2.0, 1.0]
            .map(|digit| digit * power)
            .into_iter()
            .find(|step| *step * 3.0 <= self.most)
            .unwrap_or(power)
    }
}

fn draw_scale(area: &Area<'_>, scale: &Scale, bottom: i32) -> Result<()> {
    let steps = (scale.most / scale.step()).floor() as i32;
    for step in -steps..=steps {
        let percent = f64::from(step) * scale.step();
        let x = scale.x(percent);
        let colour = if step == 0 { FAINT } else { GRID };
        let line = PathElement::new(vec![(x, TOP - 6), (x, bottom)], colour.stroke_width(1));
        area.draw(&line).map_err(drawing)?;
        let label = if step == 0 { "as before".into() } else { format!("{percent:+.0} %") };
        area.draw(&Text::new(label, (x, TOP - 16), text(12, FAINT, HPos::Center))).map_err(drawing)?;
    }
    Ok(())
}

fn draw_change(area: &Area<'_>, scale: &Scale, change: &Change, middle: i32) -> Result<()> {
    let colour = match change.verdict() {
        Trend::Better => BETTER,
        Trend::Worse => WORSE,
        Trend::Same => FAINT,
    };
    let [low, centre, high] =
        [change.after.min, change.after.median, change.after.max].map(|value| scale.x(change.percent(value)));
    let [was_low, was_high] =
        [change.before.min, change.before.max].map(|value| scale.x(change.percent(value)));
    let band = Rectangle::new([(was_low, middle - 8), (was_high, middle + 8)], GRID.mix(0.7).filled());
    area.draw(&band).map_err(drawing)?;
    let line = PathElement::new(vec![(low, middle), (high, middle)], colour.stroke_width(2));
    area.draw(&line).map_err(drawing)?;
    area.draw(&Circle::new((centre, middle), 5, colour.filled())).map_err(drawing)?;
    let title = format!("{}, {}", summary::title(&change.scenario), change.metric.title());
    area.draw(&Text::new(title, (MARGIN, middle), text(13, INK, HPos::Left))).map_err(drawing)?;
    let figures = change.show().join(" → ");
    let percent = format!("{:+.1} %", change.percent(change.after.median));
    area.draw(&Text::new(figures, (WIDTH as i32 - MARGIN - 62, middle), text(12, FAINT, HPos::Right)))
        .map_err(drawing)?;
    area.draw(&Text::new(percent, (WIDTH as i32 - MARGIN, middle), bold(13, colour, HPos::Right)))
        .map_err(drawing)
}
