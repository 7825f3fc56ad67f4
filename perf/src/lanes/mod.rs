//! Which lane carries what: the counters of this node's lanes, and the way of one flow.
//!
//! Run on a node (in its network namespace). It changes nothing.
//!
//! What the kernel's routing says of a flow ([`route`]) is not all: a packet that a socket of this node sent, from a
//! pod's namespace, too, may carry a hash that its socket drew, and then that decides
//! (`fib_multipath_hash` in `net/ipv4/route.c`). So a flow is also looked for on the lanes themselves ([`watch`]).

mod counters;
mod flow;
mod route;
mod watch;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, LineStyle, Table, presets};

pub use flow::Flow;

use crate::args;
use counters::Lane;
use watch::Seen;

/// Shows the lanes and, if one is asked for, a flow.
pub fn main(options: &args::Lanes) -> ExitCode {
    match shown(options) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lanes: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn shown(options: &args::Lanes) -> Result<String> {
    let lanes = counters::read()?;
    let mut text = format!("{}\n", table(&lanes));
    if let Some(flow) = &options.flow {
        let chosen = route::lane(flow)?;
        let time = Duration::from_secs(options.seconds.into());
        let seen = watch::watch(flow, &lanes, time)?;
        let _ = writeln!(text, "\nflow {flow}");
        let _ = writeln!(text, "by its addresses and ports: {chosen}");
        let _ = writeln!(text, "seen in {} s, out: {}", options.seconds, carried(&seen, |seen| seen.out));
        let _ = writeln!(text, "seen in {} s, in:  {}", options.seconds, carried(&seen, |seen| seen.back));
    }
    Ok(text)
}

fn table(lanes: &[Lane]) -> Table {
    let sent = lanes.iter().map(|lane| lane.sent.packets).sum();
    let received = lanes.iter().map(|lane| lane.received.packets).sum();
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header([
        "lane",
        "packets sent",
        "share",
        "bytes sent",
        "packets received",
        "share",
        "bytes received",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for Lane { interface, sent: out, received: back, .. } in lanes {
        table.add_row([
            interface.clone(),
            out.packets.to_string(),
            share(out.packets, sent),
            out.bytes.to_string(),
            back.packets.to_string(),
            share(back.packets, received),
            back.bytes.to_string(),
        ]);
    }
    table
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

/// The packets of one direction, by lane.
fn carried(seen: &[Seen], direction: impl Fn(&Seen) -> u64) -> String {
    let lanes: Vec<String> = seen
        .iter()
        .filter(|seen| direction(seen) > 0)
        .map(|seen| format!("{} ({} packets)", seen.interface, direction(seen)))
        .collect();
    if lanes.is_empty() { "no packet".to_owned() } else { lanes.join(", ") }
}
