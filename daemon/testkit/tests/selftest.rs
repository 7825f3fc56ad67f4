//! Proves the kit itself: what its scenarios take for granted is so.
//!
//! Above all the positive controls: without Warren, pods do talk in the clear, the capture does see it, a
//! forged packet does arrive. A scenario that sees none of that with Warren has then seen Warren.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_testkit::lab::{Families, Lab, Plan};
use warren_testkit::scenario::{self, Scenario};
use warren_testkit::traffic::ping::{Flood, Ping};
use warren_testkit::traffic::{inject, iperf, tcp, udp};

#[path = "selftest/left_behind.rs"]
mod left_behind;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("pods talk in the clear without Warren, and the capture sees it", pods_talk_in_the_clear),
    ("the capture keeps up with iperf3", the_capture_keeps_up),
    ("masquerading does not hide clear text from the capture", masquerading_hides_nothing),
    ("a forged packet reaches a pod", a_forged_packet_arrives),
    ("ping loss is counted exactly", ping_loss_is_exact),
    ("the underlay may be IPv6 only", the_underlay_may_be_ipv6),
    ("a dropped lab is gone", a_dropped_lab_is_gone),
    ("SIGKILL leaves nothing behind", left_behind::sigkill),
    ("SIGINT and SIGTERM end a lab and leave nothing behind", left_behind::signals),
    ("the exit status of an isolated program is passed on", left_behind::exit_status),
];

fn main() -> ExitCode {
    match left_behind::victim() {
        Some(how) => left_behind::live(&how),
        None => scenario::run(&["ip", "iperf3", "nft", "ping"], SCENARIOS),
    }
}

fn two_nodes() -> Result<Lab> {
    Lab::new(Plan { nodes: 2, ..Plan::default() })
}

fn pods_talk_in_the_clear() -> Result<()> {
    let lab = two_nodes()?;
    let capture = lab.capture()?;
    let (from, to) = (&lab.node(1).pods[0], &lab.node(2).pods[1]);
    for ip in &to.ips {
        Ping::default().run(&from.netns, *ip)?.complete()?;
        let report = capture.reset()?;
        // 5 requests and 5 answers, each counted once; then neighbour discovery, and nothing else.
        ensure!(report.clear == 10, "{ip}: {report:?}");
        ensure!(report.total() == report.clear + report.control, "{ip}: {report:?}");
        ensure!(report.no_clear_text().is_err(), "the report finds nothing wrong with {report:?}");

        tcp::transfer(&to.netns, *ip, &from.netns, 1 << 20, Duration::from_secs(5))?;
        ensure!(capture.reset()?.clear > 20, "a mebibyte over TCP was not seen");
    }
    Ok(())
}

fn the_capture_keeps_up() -> Result<()> {
    let lab = two_nodes()?;
    let capture = lab.capture()?;
    let (server, client) = (&lab.node(2).pods[0], &lab.node(1).pods[0]);
    let result = iperf::measure(&server.netns, server.ipv4(), &client.netns, 2)?;
    let report = capture.report()?;
    println!(
        "{:.1} Gbit/s in the clear, {} frames seen, {} dropped",
        result.gbits, report.clear, report.dropped
    );
    ensure!(report.dropped == 0, "{report:?}");
    // No frame is larger than 64 KiB, so so many there must have been.
    ensure!(report.clear > result.bytes / 65536, "{report:?}");
    Ok(())
}

fn masquerading_hides_nothing() -> Result<()> {
    let lab = two_nodes()?;
    let capture = lab.capture()?;
    // A node address is not in the cluster's pod range: what the CNI masquerades.
    Ping::default().run(&lab.node(1).pods[0].netns, lab.node(2).ips[0])?.complete()?;
    let report = capture.report()?;
    ensure!(report.clear == 10 && report.offenders[0].contains("canary"), "{report:?}");
    Ok(())
}

fn a_forged_packet_arrives() -> Result<()> {
    let lab = two_nodes()?;
    let capture = lab.capture()?;
    let (victim, impersonated) = (&lab.node(1).pods[0], &lab.node(2).pods[0]);
    for (source, ip) in impersonated.ips.iter().zip(&victim.ips) {
        let mut receiver = udp::Receiver::listen(&victim.netns, *ip, 4000)?;
        inject::forge(&lab.attacker, &lab.node(1).netns, *source, *ip, 4000, "forged")?;
        receiver.expect("forged", Duration::from_secs(2))?;
        udp::send(&lab.node(1).pods[1].netns, *ip, 4000, "honest")?;
        receiver.expect("honest", Duration::from_secs(2))?;
        ensure!(!receiver.has("never sent"), "a receiver that believes anything");
        ensure!(capture.reset()?.clear == 1, "the forged packet was not seen on the underlay");
    }
    Ok(())
}

fn ping_loss_is_exact() -> Result<()> {
    let lab = two_nodes()?;
    let mut flood =
        Flood::start(&lab.node(1).pods[0].netns, lab.node(2).pods[0].ipv4(), Duration::from_millis(2))?;
    flood.await_answer(Duration::from_secs(1))?;
    // Every fourth echo request is lost for a while.
    lab.node(2).netns.nft(
        "table ip loss { chain forward { type filter hook forward priority 0;\n\
         icmp type echo-request numgen inc mod 4 == 0 counter drop\n } \n }",
    )?;
    for _ in 0..100 {
        flood.await_answer(Duration::from_secs(1))?;
    }
    let rules = lab.node(2).netns.sh("nft list table ip loss")?;
    lab.node(2).netns.sh("nft delete table ip loss")?;
    let answers = flood.stop()?;
    let lost: usize =
        rules.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).unwrap_or(0);
    // A few more may have been dropped between the reading of the counter and the end of the rule.
    ensure!(
        lost >= 25 && (lost..lost + 10).contains(&answers.missing.len()),
        "{lost} dropped, but {answers}"
    );
    ensure!(answers.longest_gap() == 1, "{answers}");
    Ok(())
}

fn the_underlay_may_be_ipv6() -> Result<()> {
    let lab = Lab::new(Plan { nodes: 2, underlay: Families::V6, ..Plan::default() })?;
    let capture = lab.capture()?;
    for ip in &lab.node(2).pods[0].ips {
        Ping::default().run(&lab.node(1).pods[0].netns, *ip)?.complete()?;
        ensure!(capture.reset()?.clear == 10, "pings to {ip} were not seen");
    }
    Ok(())
}

fn a_dropped_lab_is_gone() -> Result<()> {
    let lab = two_nodes()?;
    let mut sleeper = lab.node(1).netns.command("sleep").arg("1000").spawn()?;
    let directory = lab.registry();
    drop(lab);
    ensure!(!sleeper.wait()?.success(), "a process of the lab has outlived it");
    ensure!(!directory.exists(), "{} is still there", directory.display());
    ensure!(std::fs::read_dir("/run/netns")?.count() == 0, "a namespace is still mounted");
    Ok(())
}
