//! Colours, letters and distances that all plots share.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels.
pub const WIDTH: u32 = 960;
/// Around everything.
pub const MARGIN: i32 = 20;

/// What is written in.
pub const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
/// What explains.
pub const FAINT: RGBColor = RGBColor(0x6b, 0x72, 0x7b);
/// Lines that guide the eye.
pub const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);
/// What got better, and worse.
pub const BETTER: RGBColor = RGBColor(0x1a, 0x7f, 0x4b);
pub const WORSE: RGBColor = RGBColor(0xc0, 0x2d, 0x2d);

/// The colour of a program, the same in all plots of all runs. Told apart also by those who see few colours
/// (Okabe and Ito's palette).
pub fn colour(program: &str) -> RGBColor {
    match program {
        "warren" => RGBColor(0xd5, 0x5e, 0x00),
        "wireguard-go" => RGBColor(0x00, 0x72, 0xb2),
        "gotatun" => RGBColor(0x00, 0x9e, 0x73),
        "boringtun" => RGBColor(0xcc, 0x79, 0xa7),
        "kernel" => RGBColor(0x56, 0xb4, 0xe9),
        _ => RGBColor(0x8a, 0x90, 0x98),
    }
}

/// Letters of so many pixels, placed by their left (or right, or centre) and the middle of their height.
pub fn text(size: i32, colour: RGBColor, side: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(side, VPos::Center))
}

/// The same, bold.
pub fn bold(size: i32, colour: RGBColor, side: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().style(FontStyle::Bold).color(&colour).pos(Pos::new(side, VPos::Center))
}
