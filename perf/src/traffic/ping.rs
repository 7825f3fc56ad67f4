//! Round trips by ping(8), each of them: the other end's kernel answers, so nothing is measured but the path.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Sends `count` echo requests at this interval; `command` is a ping without arguments. Returns the round trips in
/// µs, in the order they were answered. Lost ones have none.
pub fn round_trips(mut command: Command, to: IpAddr, count: u32, interval: Duration) -> Result<Vec<u32>> {
    let output = command
        .args(["-n", "-c", &count.to_string(), "-i", &interval.as_secs_f64().to_string(), "-W", "1"])
        .arg(to.to_string())
        .stdin(Stdio::null())
        .output()
        .context("starting ping")?;
    let times: Vec<u32> = String::from_utf8_lossy(&output.stdout).lines().filter_map(time).collect();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(!times.is_empty(), "none of {count} pings to {to} was answered {}", complaint.trim());
    Ok(times)
}

/// The µs of a line such as `64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.067 ms`.
fn time(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(" time=")?;
    let (number, unit) = rest.trim_end().split_once(' ')?;
    let milliseconds: f64 = number.parse().ok().filter(|_| unit == "ms")?;
    Some((milliseconds * 1000.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_microseconds() {
        assert_eq!(time("64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.067 ms"), Some(67));
        assert_eq!(time("64 bytes from fd09::2: icmp_seq=1 ttl=64 time=12.4 ms"), Some(12_400));
        assert_eq!(time("2 packets transmitted, 2 received, 0% packet loss, time 1ms"), None);
        assert_eq!(time("From 10.9.0.1 icmp_seq=1 Destination Host Unreachable"), None);
    }
}
