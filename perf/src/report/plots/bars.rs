//! Panels of horizontal bars, two beside each other.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::drawing;
use super::panels::{Bar, Panel, Sheet};
use super::style::{FAINT, GRID, INK, MARGIN, WIDTH, bold, colour, text};

/// Pixels of one bar with the space to the next.
const STEP: i32 = 22;
const THICK: i32 = 14;
/// Above the bars of a panel: its title.
const HEAD: i32 = 30;
/// Below them.
const FOOT: i32 = 20;
/// Above all panels: title and legend.
const TOP: i32 = 62;
/// For the names on the left of a panel, and for the figures on its right.
const NAMES: i32 = 96;
const FIGURES: i32 = 96;
/// Between the two columns.
const GAP: i32 = 32;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the sheet; `None` if there is nothing on it.
pub fn draw(sheet: &Sheet) -> Result<Option<String>> {
    let rows: Vec<&[Panel]> = sheet.panels.chunks(2).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let heights: Vec<i32> = rows.iter().map(|row| row.iter().map(height).max().unwrap_or_default()).collect();
    let height = TOP + heights.iter().sum::<i32>() + MARGIN / 2;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        area.draw(&Text::new(sheet.title, (MARGIN, 26), bold(20, INK, HPos::Left))).map_err(drawing)?;
        area.draw(&Text::new(&*sheet.legend, (MARGIN, 48), text(13, FAINT, HPos::Left))).map_err(drawing)?;
        let column = (WIDTH as i32 - 2 * MARGIN - GAP) / 2;
        let mut top = TOP;
        for (row, height) in rows.into_iter().zip(heights) {
            for (at, panel) in row.iter().enumerate() {
                draw_panel(&area, panel, MARGIN + at as i32 * (column + GAP), top, column)?;
            }
            top += height;
        }
        area.present().map_err(drawing)?;
    }
    Ok(Some(svg))
}

fn height(panel: &Panel) -> i32 {
    HEAD + panel.bars.len() as i32 * STEP + FOOT
}

fn draw_panel(area: &Area<'_>, panel: &Panel, left: i32, top: i32, width: i32) -> Result<()> {
    area.draw(&Text::new(&*panel.title, (left, top + 12), bold(14, INK, HPos::Left))).map_err(drawing)?;
    let note = text(12, FAINT, HPos::Right);
    area.draw(&Text::new(&*panel.note, (left + width, top + 12), note)).map_err(drawing)?;
    let largest = panel.bars.iter().flat_map(|bar| [bar.spread.map(|spread| spread.max), bar.whole]);
    let largest = largest.flatten().fold(0.0, f64::max);
    let room = f64::from(width - NAMES - FIGURES);
    let zero = left + NAMES;
    let scale = |value: f64| zero + if largest > 0.0 { (value / largest * room).round() as i32 } else { 0 };
    let bottom = top + HEAD + panel.bars.len() as i32 * STEP;
    let axis = PathElement::new(vec![(zero, top + HEAD - 4), (zero, bottom)], GRID.stroke_width(1));
    area.draw(&axis).map_err(drawing)?;
    for (at, bar) in panel.bars.iter().enumerate() {
        let middle = top + HEAD + at as i32 * STEP + STEP / 2 - 2;
        draw_bar(area, bar, zero, middle, scale)?;
    }
    Ok(())
}

fn draw_bar(area: &Area<'_>, bar: &Bar, zero: i32, middle: i32, scale: impl Fn(f64) -> i32) -> Result<()> {
    let colour = colour(&bar.program);
    let name = if bar.program == "warren" { bold(13, INK, HPos::Right) } else { text(13, INK, HPos::Right) };
    area.draw(&Text::new(&*bar.program, (zero - 8, middle), name)).map_err(drawing)?;
    let mut end = zero;
    let mut fill = |value: f64, opacity: f64| {
        let right = scale(value);
        end = end.max(right);
        let corners = [(zero, middle - THICK / 2), (right, middle + THICK / 2)];
        area.draw(&Rectangle::new(corners, colour.mix(opacity).filled())).map_err(drawing)
    };
    if let Some(whole) = bar.whole {
        fill(whole, 0.25)?;
    }
    if let Some(spread) = bar.spread {
        fill(spread.median, 0.9)?;
        let [low, high] = [scale(spread.min), scale(spread.max)];
        end = end.max(high);
        let line = PathElement::new(vec![(low, middle), (high, middle)], INK.stroke_width(1));
        area.draw(&line).map_err(drawing)?;
        for x in [low, high] {
            let tick = PathElement::new(vec![(x, middle - 3), (x, middle + 3)], INK.stroke_width(1));
            area.draw(&tick).map_err(drawing)?;
        }
    }
    let ink = if bar.spread.is_some() { INK } else { FAINT };
    area.draw(&Text::new(&*bar.text, (end + 8, middle), text(13, ink, HPos::Left))).map_err(drawing)
}
