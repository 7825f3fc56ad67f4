//! Beginnings and ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_testkit::netns::Netns;
use warren_testkit::wait;
use warren_tunnel::uapi::{client, socket_path};

use super::site::{End, Family, INTERFACE, ONE, Program, SOON, Site, WARREN};

fn both_lane_counts(scenario: impl Fn(&End) -> Result<()>) -> Result<()> {
    for lanes in [1, 4] {
        let site = Site::new(Program::Warren { lanes }, Program::Go)?;
        scenario(&site.left).with_context(|| format!("with {lanes} lanes"))?;
    }
    Ok(())
}

pub fn socket_removed() -> Result<()> {
    both_lane_counts(|end| {
        // Somebody else's socket does not matter.
        end.netns.sh("touch /run/wireguard/other.sock")?;
        end.netns.sh("rm /run/wireguard/other.sock")?;
        end.get()?;
        end.netns.sh("rm /run/wireguard/wg0.sock")?;
        end.wait_gone()
    })
}

pub fn interface_deleted() -> Result<()> {
    both_lane_counts(|end| {
        end.netns.ip(&format!("link delete {INTERFACE}"))?;
        end.wait_gone()
    })
}

pub fn signals() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        both_lane_counts(|end| {
            kill(Pid::from_raw(end.warren_pid()? as i32), signal)?;
            end.wait_gone()?;
            // In the foreground its exit status is seen.
            let mut child = foreground(end)?;
            kill(Pid::from_raw(child.id() as i32), signal)?;
            let status = wait::until("its end", SOON, || child.try_wait()?.context("it runs"))?;
            ensure!(status.success(), "{status}");
            end.wait_gone()
        })?;
    }
    Ok(())
}

fn foreground(end: &End) -> Result<Child> {
    let child = end
        .netns
        .command(WARREN)
        .args(["--foreground", INTERFACE])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait::until("the socket", SOON, || end.get().map(drop))?;
    Ok(child)
}

/// Root of a user namespace has rights in its own network, and nowhere else.
pub fn user_namespace() -> Result<()> {
    let netns = Netns::new("user")?;
    let mut child = netns
        .command("unshare")
        .args(["--user", "--map-root-user", "--net", WARREN, "--foreground", INTERFACE])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let answer = wait::until("an answer", SOON, || {
        ensure!(child.try_wait()?.is_none(), "it has ended");
        netns.run(|| client::get(&socket_path(INTERFACE), SOON))??;
        Ok(())
    });
    // Unless it has ended by itself, which its output explains.
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    answer.with_context(|| said.clone().into_owned())?;
    ensure!(output.status.success(), "{}: {said}", output.status);
    // It may not go beyond the system's limit, which not every kernel shows in here.
    let limits =
        ["rmem_max", "wmem_max"].map(|name| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")));
    if let [Ok(receiving), Ok(sending)] = limits {
        let limit = receiving.trim().parse::<usize>()?.min(sending.trim().parse()?);
        ensure!(said.contains("small socket buffers") == (limit < 2 << 20), "the limit is {limit}: {said}");
    }
    Ok(())
}

pub fn second_instance() -> Result<()> {
    both_lane_counts(|end| {
        let pid = end.warren_pid()?;
        for arguments in ["", "--foreground", "--lanes 4"] {
            let again = end.netns.sh(&format!("{WARREN} {arguments} {INTERFACE}"));
            let error = format!("{:#}", again.err().context("a second instance was let in")?);
            ensure!(error.contains("already running"), "{error}");
        }
        end.get()?;
        ensure!(end.warren_pid()? == pid && end.has_interface()?);
        Ok(())
    })
}

pub fn stale_socket() -> Result<()> {
    both_lane_counts(|end| {
        kill(Pid::from_raw(end.warren_pid()? as i32), Signal::SIGKILL)?;
        wait::until("its end", SOON, || {
            ensure!(end.netns.pids_of("warren-tunnel")?.is_empty() && !end.has_interface()?, "not yet");
            Ok(())
        })?;
        ensure!(end.has_file(&socket_path(INTERFACE))?, "nobody can have removed the socket");
        end.start()?;
        end.get().map(drop)
    })
}

pub fn errors() -> Result<()> {
    let site = Site::new(Program::Go, Program::Go)?;
    for (arguments, complaint) in [
        ("", "IFNAME"),
        ("wg%d", "no name for an interface"),
        ("a/b", "no name for an interface"),
        ("sixteen-letters-", "no name for an interface"),
        ("--lanes 0 wg1", "lanes"),
        ("--lanes 257 wg1", "lanes"),
        ("--log a=b=c wg1", "--log"),
        ("eth0", "another interface"),
    ] {
        let result = site.left.netns.sh(&format!("{WARREN} {arguments}"));
        let error = format!("{:#}", result.err().with_context(|| format!("accepted: {arguments}"))?);
        ensure!(error.contains(complaint), "{error}");
    }
    // wireguard-go's socket without its interface: a live program is never pushed aside.
    let result = site
        .left
        .netns
        .sh("ln -s wg0.sock /run/wireguard/wg1.sock")
        .and_then(|_| site.left.netns.sh(&format!("{WARREN} wg1")));
    let error = format!("{:#}", result.err().context("a live socket was replaced")?);
    ensure!(error.contains("already running"), "{error}");
    ensure!(site.left.netns.pids_of("warren-tunnel")?.is_empty());
    let links = site.left.netns.sh("ip -o link")?;
    ensure!(!links.contains("wg1"), "an interface was left behind: {links}");
    Ok(())
}

pub fn silent_clients() -> Result<()> {
    let site = Site::joined(ONE, ONE, Family::V4)?;
    let end = &site.left;
    let path = socket_path(INTERFACE);
    let connect = || end.netns.run(|| UnixStream::connect(&path))?.context("connecting");
    // More than are kept: silent ones, ones in the middle of a request, ones that do not read.
    let mut clients = Vec::new();
    for number in 0..100 {
        let mut client = connect()?;
        match number % 3 {
            0 => {}
            1 => client.write_all(b"set=1\nlisten_")?,
            _ => client.write_all(&b"get=1\n\n".repeat(100))?,
        }
        clients.push(client);
        let start = Instant::now();
        end.get().with_context(|| format!("with {number} other clients"))?;
        ensure!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    }
    // One that is slow is served nevertheless, and may go on asking.
    let mut slow = connect()?;
    slow.set_read_timeout(Some(SOON))?;
    for _ in 0..3 {
        for byte in b"get=1\n\n" {
            slow.write_all(&[*byte])?;
            end.get()?;
        }
        let mut answer = String::new();
        let mut buffer = [0; 4096];
        while !answer.ends_with("errno=0\n\n") {
            let read = slow.read(&mut buffer)?;
            ensure!(read > 0, "it hung up after {answer:?}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }
    site.ping()
}

pub fn idle() -> Result<()> {
    let site = Site::joined(Program::Warren { lanes: 4 }, ONE, Family::V4)?;
    site.ping()?;
    let pid = site.left.warren_pid()?;
    let seconds = 3;
    let before = cpu_ticks(pid)?;
    // What is measured is that nothing happens; there is nothing to wait for.
    std::thread::sleep(Duration::from_secs(seconds));
    let ticks = cpu_ticks(pid)? - before;
    println!("idle with 4 lanes: {ticks} ticks of 10 ms in {seconds} s, RSS {} KiB", rss_kib(pid)?);
    ensure!(ticks <= 2, "{ticks} ticks");
    Ok(())
}

/// Processor time used so far, in ticks of 10 ms (proc(5), fields 14 and 15 of stat).
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("a strange stat file")?.1;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    Ok(times.next().context("no user time")?? + times.next().context("no system time")??)
}

/// Resident memory, in KiB.
pub fn rss_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().next().context("no figure")?.parse().context("no number")
}
