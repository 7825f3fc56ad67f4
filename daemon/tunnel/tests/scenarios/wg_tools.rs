//! The tools that people configure WireGuard with, unchanged.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_testkit::process;
use warren_testkit::traffic::ping::Flood;

use super::site::{Family, INTERFACE, ONE, Program, Site, WARREN};

fn genkey(site: &Site) -> Result<String> {
    Ok(site.left.netns.sh("wg genkey")?.trim().to_owned())
}

fn pubkey(private: &str) -> Result<String> {
    let mut command = std::process::Command::new("wg");
    Ok(process::output_with_input(command.arg("pubkey"), private)?.trim().to_owned())
}

/// Writes a file under the scenarios' own /run.
fn file(name: &str, text: &str) -> Result<String> {
    let path = std::env::temp_dir().join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

pub fn wg() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let sh = |words: &str| site.left.netns.sh(words);
    let show = sh("wg show")?;
    for part in ["interface: wg0", "listening port: 51801", "latest handshake: ", "transfer: ", "10.9.0.2/32"]
    {
        ensure!(show.contains(part), "no {part:?} in {show}");
    }
    ensure!(sh("wg show interfaces")?.trim() == INTERFACE);

    // wg set, every key of it.
    let (other, psk) = (pubkey(&genkey(&site)?)?, file("psk", &site.left.netns.sh("wg genpsk")?)?);
    sh(&format!(
        "wg set wg0 fwmark 0x2a peer {other} preshared-key {psk} endpoint [2001:db8::77]:7 \
         persistent-keepalive 17 allowed-ips 10.77.0.0/16,fd77::/32"
    ))?;
    let dump = sh("wg show wg0 dump")?;
    ensure!(dump.lines().next().is_some_and(|line| line.ends_with("\t51801\t0x2a")), "{dump}");
    let line = dump.lines().find(|line| line.starts_with(&other)).context("the new peer is not there")?;
    let fields: Vec<&str> = line.split('\t').collect();
    let expected_psk = fs::read_to_string(&psk)?;
    ensure!(fields[1] == expected_psk.trim() && fields[2] == "[2001:db8::77]:7", "{line}");
    ensure!(fields[3] == "10.77.0.0/16,fd77::/32" && fields[4] == "0" && fields[7] == "17", "{line}");
    sh(&format!(
        "wg set wg0 peer {other} preshared-key /dev/null persistent-keepalive off allowed-ips 10.78.0.0/16"
    ))?;
    let dump = sh("wg show wg0 dump")?;
    let line = dump.lines().find(|line| line.starts_with(&other)).context("the peer has gone")?;
    let fields: Vec<&str> = line.split('\t').collect();
    ensure!(fields[1] == "(none)" && fields[3] == "10.78.0.0/16" && fields[7] == "off", "{line}");

    // syncconf under ping: the peer that stays loses nothing, the other goes.
    let config = sh("wg showconf wg0")?;
    let without_other =
        config.split("\n\n").filter(|section| !section.contains(&other)).collect::<Vec<_>>().join("\n\n");
    let flood = Flood::start(&site.left.netns, site.right.inner()[0], Duration::from_millis(5))?;
    for _ in 0..5 {
        sh(&format!("wg syncconf wg0 {}", file("sync.conf", &without_other)?))?;
        ensure!(!sh("wg show wg0 peers")?.contains(&other), "the peer is still there");
        sh(&format!("wg syncconf wg0 {}", file("sync.conf", &config)?))?;
        ensure!(sh("wg show wg0 peers")?.contains(&other), "the peer did not return");
    }
    let answers = flood.stop()?;
    println!("10 times wg syncconf: {answers}");
    answers.complete()?;
    ensure!(sh("wg showconf wg0")?.lines().count() == config.lines().count(), "the configuration changed");

    // setconf and addconf.
    sh(&format!("wg setconf wg0 {}", file("set.conf", &without_other)?))?;
    ensure!(sh("wg show wg0 peers")?.lines().count() == 1);
    site.ping().context("after setconf")?;
    sh(&format!("wg addconf wg0 {}", file("add.conf", &format!("[Peer]\nPublicKey = {other}\n"))?))?;
    ensure!(sh("wg show wg0 peers")?.lines().count() == 2);
    sh(&format!("wg set wg0 peer {other} remove"))?;
    ensure!(sh("wg show wg0 peers")?.lines().count() == 1);
    sh("wg set wg0 private-key /dev/null")?;
    ensure!(sh("wg show wg0 private-key")?.trim() == "(none)");
    Ok(())
}

pub fn wg_quick() -> Result<()> {
    let site = Site::new(Program::Go, Program::Go)?;
    let keys = [genkey(&site)?, genkey(&site)?];
    let ends = [&site.left, &site.right];
    let mut files = Vec::new();
    for number in 0..2 {
        let other = 1 - number;
        let config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 5300{number}\nAddress = 10.8.0.{number}/24, fd08::{number}/64\n\
             MTU = 1380\nFwMark = 0x51\n\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.8.0.{other}/32, fd08::{other}/128, 10.80.0.0/16\n\
             Endpoint = {}:5300{other}\nPersistentKeepalive = 20\n",
            keys[number],
            pubkey(&keys[other])?,
            ends[other].underlay(Family::V4),
        );
        files.push(file(&format!("quick{number}.conf"), &config)?);
    }
    let quick = |number: usize, verb: &str| {
        let mut command = ends[number].netns.command("wg-quick");
        command.args([verb, &files[number]]).env("WG_QUICK_USERSPACE_IMPLEMENTATION", WARREN);
        process::output(&mut command)
    };
    for _ in 0..2 {
        quick(0, "up")?;
        quick(1, "up")?;
        for ip in ["10.8.0.1", "fd08::1"] {
            ends[0].try_ping(ip.parse()?)?.complete()?;
        }
        let link = ends[0].netns.sh("ip link show quick0")?;
        ensure!(link.contains("mtu 1380"), "{link}");
        ensure!(ends[0].netns.sh("ip route show 10.80.0.0/16")?.contains("quick0"));
        quick(0, "down")?;
        quick(1, "down")?;
        for end in ends {
            warren_testkit::wait::until("the end", super::site::SOON, || {
                ensure!(end.netns.pids_of("warren-tunnel")?.is_empty(), "warren-tunnel runs on");
                ensure!(!end.netns.sh("ls /run/wireguard")?.contains("quick"), "a socket was left behind");
                Ok(())
            })?;
        }
    }
    Ok(())
}

pub fn many_allowed_ips() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let mut config = site.left.netns.sh("wg showconf wg0")?;
    for peer in 0..200 {
        let _ = write!(config, "\n[Peer]\nPublicKey = {}\nAllowedIPs = ", pubkey(&genkey(&site)?)?);
        for host in 0..100 {
            let number = peer * 100 + host;
            let separator = if host == 0 { "" } else { ", " };
            let _ = write!(config, "{separator}10.{}.{}.0/24", 100 + number / 256, number % 256);
        }
        config.push('\n');
    }
    let config = file("many.conf", &config)?;
    let mut flood = Flood::start(&site.left.netns, site.right.inner()[0], Duration::from_millis(5))?;
    let mut times = Vec::new();
    for verb in ["syncconf", "syncconf"] {
        let start = Instant::now();
        site.left.netns.sh(&format!("wg {verb} wg0 {config}"))?;
        times.push(start.elapsed());
        flood.await_answer(super::site::SOON)?;
    }
    let start = Instant::now();
    let state = site.left.get()?;
    let get = start.elapsed();
    let count: usize = state.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    ensure!(count == 20_002 && state.peers.len() == 201, "{count} allowed IPs");
    let answers = flood.stop()?;
    println!("201 peers, 20,002 allowed IPs: wg syncconf {times:?}, get {get:?}; {answers}");
    answers.complete()?;
    ensure!(times.iter().all(|time| *time < Duration::from_secs(5)), "too slow");
    Ok(())
}

pub fn refusals() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    site.ping()?;
    let zero = format!("{}=", "A".repeat(43));
    let set = site.left.netns.sh(&format!("wg set wg0 listen-port 1 fwmark 1 peer {zero}"));
    let error = format!("{:#}", set.err().context("a zero key was accepted")?);
    ensure!(error.contains("Invalid argument"), "{error}");
    let state = site.left.get()?;
    ensure!((state.listen_port, state.fwmark, state.peers.len()) == (51801, 0, 1), "half of it was applied");
    site.ping()
}
