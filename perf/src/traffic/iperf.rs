//! TCP by iperf3, between a server and a client that may be in namespaces of their own.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Which way the streams go, and how many there are each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// From the client to the server.
    Forward(u32),
    /// From the server to the client.
    Reverse(u32),
    /// Both ways at the same time.
    Both(u32),
}

/// What iperf3 measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// Received, in Gbit/s; the sum of all streams and both directions.
    pub gbits: f64,
    /// Received bytes.
    pub bytes: u64,
    /// TCP segments sent again.
    pub retransmits: u64,
}

/// Measures for `seconds` from `client` to `server`, which listens on `at`: two iperf3 without arguments, where they are
/// to run.
pub fn measure(
    server: Command,
    at: IpAddr,
    mut client: Command,
    streams: Streams,
    seconds: u32,
) -> Result<Throughput> {
    let _server = Server::start(server, at)?;
    client.args(["--client", &at.to_string(), "--time", &seconds.to_string()]).args([
        "--interval",
        "0",
        "--connect-timeout",
        "5000",
        "--json",
    ]);
    let parallel = match streams {
        Streams::Forward(number) => number,
        Streams::Reverse(number) => {
            client.arg("--reverse");
            number
        }
        Streams::Both(number) => {
            client.arg("--bidir");
            number
        }
    };
    client.args(["--parallel", &parallel.to_string()]);
    // Whatever goes wrong is told in the JSON, and by the exit status as well.
    let output = client.stdin(Stdio::null()).output().context("starting iperf3 --client")?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// An iperf3 server for one measurement: after one, it is busy for a moment and refuses the next.
#[derive(Debug)]
struct Server(Child);

impl Server {
    /// Returns once it listens.
    fn start(mut command: Command, at: IpAddr) -> Result<Self> {
        let child = command
            .args(["--server", "--one-off", "--forceflush", "--bind", &at.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting iperf3 --server")?;
        let mut server = Self(child);
        let mut output = BufReader::new(server.0.stdout.take().expect("stdout was piped"));
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            ensure!(output.read_line(&mut line)? > 0, "iperf3 --server on {at} ended before it listened");
        }
        // It writes a report that nobody needs; unread, it would fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn parse(json: &str) -> Result<Throughput> {
    let report: Value = serde_json::from_str(json).context("reading iperf3's JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let mut total = Throughput { gbits: 0.0, bytes: 0, retransmits: 0 };
    for direction in ["", "_bidir_reverse"] {
        let received = &end[format!("sum_received{direction}")];
        let Some(bytes) = received["bytes"].as_u64() else { continue };
        total.bytes += bytes;
        total.gbits += received["bits_per_second"].as_f64().unwrap_or_default() / 1e9;
        total.retransmits += end[format!("sum_sent{direction}")]["retransmits"].as_u64().unwrap_or_default();
    }
    ensure!(total.bytes > 0, "iperf3 received nothing");
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_added() {
        let json = r#"{"end":{"sum_sent":{"retransmits":3},"sum_received":{"bytes":10,"bits_per_second":1e9},
            "sum_sent_bidir_reverse":{"retransmits":4},
            "sum_received_bidir_reverse":{"bytes":20,"bits_per_second":2e9}}}"#;
        assert_eq!(parse(json).unwrap(), Throughput { gbits: 3.0, bytes: 30, retransmits: 7 });
    }

    #[test]
    fn nothing_received_is_an_error() {
        let json = r#"{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}"#;
        assert_eq!(parse(json).unwrap_err().to_string(), "iperf3 received nothing");
        let error = parse(r#"{"error":"unable to connect to server"}"#).unwrap_err();
        assert_eq!(error.to_string(), "iperf3: unable to connect to server");
    }
}
