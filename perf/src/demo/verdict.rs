//! The table, and whether all of it holds together.

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, LineStyle, Table, presets};
use warren_api::status::Status;
use warren_testkit::capture::Capture;
use warren_testkit::lab::Lab;
use warren_testkit::traffic::iperf::Throughput;

use super::traffic::{Link, Pings};
use crate::progress::Progress;

/// Prints the table and returns the closing line, or why the demo has failed.
pub fn judge(
    lab: &Lab,
    capture: &Capture,
    pings: &Pings,
    ring: &[Link],
    progress: &Progress,
) -> Result<String> {
    let report = capture.report()?;
    let statuses: Vec<Status> = lab.nodes.iter().map(|node| node.status()).collect::<Result<_>>()?;
    println!("\n{}\n", table(&statuses, ring));

    report.no_clear_text()?;
    ensure!(
        report.wireguard_data > 0,
        "pods talked, and the sniffer saw no WireGuard packet: where did it go?"
    );
    ensure!(
        report.fragments == 0,
        "{} packets of the mesh were fragmented: its MTU is too large",
        report.fragments
    );
    for (status, link) in statuses.iter().zip(ring) {
        check_node(status, link)?;
    }
    Ok(format!(
        "{} nodes, {} pods, {} of {} pings answered, 0 packets in the clear, {} WireGuard packets, {:.1} s",
        lab.nodes.len(),
        lab.pods().count(),
        pings.answered,
        pings.sent,
        report.wireguard,
        progress.seconds()
    ))
}

/// Checks a daemon's account against what was done.
fn check_node(status: &Status, link: &[Throughput]) -> Result<()> {
    let node = &status.node;
    ensure!(status.ready, "{node} is not ready any more: {}", status.problems.join("; "));
    for peer in &status.peers {
        peer.handshake_age.with_context(|| format!("{node} has never shaken hands with {}", peer.node))?;
    }
    let sent: u64 = status.peers.iter().map(|peer| peer.tx_bytes).sum();
    let measured: u64 = link.iter().map(|throughput| throughput.bytes).sum();
    ensure!(
        sent >= measured,
        "iperf3 sent {measured} bytes from {node}, but its tunnel only {sent}: something went past it"
    );
    Ok(())
}

fn table(statuses: &[Status], ring: &[Link]) -> Table {
    let mut table = Table::new();
    // A line around the whole and one below the header; none between rows.
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header([
        "node",
        "backend",
        "key",
        "peers",
        "oldest handshake",
        "received",
        "sent",
        "to the next: IPv4",
        "IPv6",
    ]);
    for (status, link) in statuses.iter().zip(ring) {
        let ages = status.peers.iter().map(|peer| peer.handshake_age);
        // One without a handshake is older than any.
        let oldest = ages.reduce(|a, b| Some(a?.max(b?))).flatten();
        let mut row = vec![
            status.node.clone(),
            status.backend.to_string(),
            status.public_key.fingerprint(),
            status.peers.len().to_string(),
            oldest.map_or("none yet".into(), |age| format!("{age:.1} s ago")),
            mebibytes(status.peers.iter().map(|peer| peer.rx_bytes).sum()),
            mebibytes(status.peers.iter().map(|peer| peer.tx_bytes).sum()),
        ];
        row.extend(link.iter().map(|throughput| format!("{:.2} Gbit/s", throughput.gbits)));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
