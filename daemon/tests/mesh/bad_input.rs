//! A Node in the registry goes bad: it is quarantined, said once, its pods are out of reach and not in the
//! clear, and the others go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use warren_testkit::lab::{Node, Plan, WarrendOptions, write_atomically};
use warren_testkit::traffic::ping::Ping;
use warren_testkit::wait;

use crate::bad_nodes::{BAD_NODES, BadNode, Subject};
use crate::common::{Mesh, await_talk, in_lab, none_talk};

/// The number of the node that goes bad.
const BAD: usize = 3;
const BAD_NAME: &str = "node-3";

/// The number of the node that is asked what it thinks of it.
const JUDGE: usize = 1;

pub fn with_cluster_cidrs() -> Result<()> {
    go_through(true)
}

/// Then only the registry says which addresses are pods'.
pub fn without_cluster_cidrs() -> Result<()> {
    go_through(false)
}

fn go_through(tell_cidrs: bool) -> Result<()> {
    in_lab(Plan { nodes: 4, ..Plan::default() }, |mesh| {
        for node in &mesh.lab.nodes {
            // Who judges is to look again and again; the others look when something has changed.
            let resync = (node.number == JUDGE).then(|| "100ms".into());
            node.start_warrend(&WarrendOptions { resync, tell_cidrs, ..WarrendOptions::default() })?;
        }
        mesh.await_up()?;
        // Its own warrend would put its announcement right. Its tunnel, routes and guard stay.
        mesh.node(BAD).stop_warrend()?;
        mesh.sealed()?;
        let good = Subject::of(mesh, BAD)?.to_file();
        let mut slowest = Duration::ZERO;
        for row in BAD_NODES {
            let time = quarantine(mesh, row).with_context(|| format!("a Node with {}", row.what))?;
            write_atomically(&mesh.node(BAD).manifest_path(), &good)?;
            recover(mesh, row).with_context(|| format!("after a Node with {} was put right", row.what))?;
            slowest = slowest.max(time);
        }
        println!(
            "{} kinds of bad input, each quarantined within {} ms",
            BAD_NODES.len(),
            slowest.as_millis()
        );
        Ok(())
    })
}

/// Has the Node go bad as the row says; returns the time until node 1 had quarantined it.
fn quarantine(mesh: &Mesh, row: &BadNode) -> Result<Duration> {
    let mut subject = Subject::of(mesh, BAD)?;
    (row.spoil)(mesh, &mut subject);
    let judge = mesh.node(JUDGE);
    let said = judge.log().len();
    let start = Instant::now();
    write_atomically(&mesh.node(BAD).manifest_path(), subject.to_file())?;
    let reason = wait::until("the quarantine", Duration::from_secs(2), || {
        let quarantined = judge.status()?.quarantined;
        let entry = quarantined.iter().find(|entry| entry.node == BAD_NAME);
        let entry = entry.with_context(|| format!("quarantined are {quarantined:?}"))?;
        ensure!(
            entry.reason.contains(row.reason),
            "the reason is {:?}, without {:?}",
            entry.reason,
            row.reason
        );
        Ok(entry.reason.clone())
    })?;
    let time = start.elapsed();

    let looks = looks(judge)?;
    wait::until("several resyncs", Duration::from_secs(5), || {
        let now = self::looks(judge)?;
        ensure!(now >= looks + 4, "{} so far", now - looks);
        Ok(())
    })?;
    let log = judge.log();
    let warnings = warnings(&log[said..], BAD_NAME);
    ensure!(warnings == [reason], "several resyncs have logged {warnings:?}");

    let quarantined: Vec<String> = judge.status()?.quarantined.into_iter().map(|entry| entry.node).collect();
    let contradicted = row.contradicts.filter(|number| *number != judge.number);
    let expected = contradicted.into_iter().chain([BAD]).map(|number| mesh.node(number).name.clone());
    let expected: Vec<String> = expected.collect();
    ensure!(quarantined == expected, "quarantined are {quarantined:?}, not {expected:?}");

    none_talk(&[(mesh.pod(1, 1), mesh.pod(BAD, 1)), (mesh.pod(BAD, 2), mesh.pod(1, 2))])?;
    for (from, to) in [(1, 2), (4, 1), (2, 4)] {
        if ![Some(from), Some(to)].contains(&row.contradicts) {
            once(mesh, from, to)?;
        }
    }
    mesh.sealed()?;
    Ok(time)
}

/// Waits until nobody is quarantined and all of whom that was said talk again.
fn recover(mesh: &Mesh, row: &BadNode) -> Result<()> {
    for node in [1, 2, 4].map(|number| mesh.node(number)) {
        wait::until("the end of the quarantine", Duration::from_secs(2), || {
            let quarantined = node.status()?.quarantined;
            ensure!(quarantined.is_empty(), "{}: {quarantined:?}", node.name);
            Ok(())
        })?;
    }
    for number in row.contradicts.filter(|number| *number != JUDGE).into_iter().chain([BAD]) {
        // A handshake that crossed another is tried again after 5 s.
        await_talk(mesh.pod(1, 1), mesh.pod(number, 1), Duration::from_secs(10))?;
    }
    mesh.sealed()?;
    Ok(())
}

fn once(mesh: &Mesh, from: usize, to: usize) -> Result<()> {
    let (from, to) = (mesh.pod(from, 1), mesh.pod(to, 1));
    for ip in &to.ips {
        let answers = Ping { count: 1, ..Ping::default() }.run(&from.netns, *ip)?;
        answers.complete().with_context(|| format!("{} to {} ({ip})", from.name, to.name))?;
    }
    Ok(())
}

/// How often warrend has looked at everything.
fn looks(node: &Node) -> Result<u64> {
    let metrics = node.metrics()?;
    let line = metrics.lines().find(|line| line.starts_with("warren_looks_total"));
    let number = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
    number.with_context(|| format!("no number warren_looks_total in {metrics}"))
}

/// The reasons of all warnings that a node is quarantined.
fn warnings(log: &str, node: &str) -> Vec<String> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|entry| entry["level"] == "WARN" && entry["node"] == node)
        .filter_map(|entry| Some(entry["reason"].as_str()?.to_owned()))
        .collect()
}
