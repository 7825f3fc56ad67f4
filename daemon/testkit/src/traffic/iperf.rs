//! iperf3: throughput between two pods.

use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;
use crate::wait;

/// Every measurement gets a port of its own, so several may run in one pod.
static NEXT_PORT: AtomicU16 = AtomicU16::new(5201);

/// What iperf3 measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Throughput {
    /// Received, over the whole time, in Gbit/s; the sum of all streams.
    pub gbits: f64,
    /// Received bytes.
    pub bytes: u64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// Of each reported interval (100 ms, [`wait::patient`]), the bytes that the sender could hand over: 0 is a stall.
    pub intervals: Vec<u64>,
}

/// One running measurement.
#[derive(Debug)]
pub struct Iperf {
    server: Child,
    client: Child,
    what: String,
}

impl Iperf {
    /// Starts to send TCP from `client` to a server in `server` at its address `to`, for `seconds`.
    pub fn start(server: &Netns, to: IpAddr, client: &Netns, seconds: u32) -> Result<Self> {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed).to_string();
        let what = format!("iperf3 from {} to {} ({to})", client.name(), server.name());
        let to = to.to_string();
        let mut server = server
            .command("iperf3")
            .args(["--server", "--one-off", "--forceflush", "--bind", &to, "--port", &port])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting iperf3 --server")?;
        let mut output = BufReader::new(server.stdout.take().expect("stdout was piped"));
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            if output.read_line(&mut line)? == 0 {
                let _ = server.wait();
                bail!("{what}: the server ended before it listened");
            }
        }
        // The server writes a report that nobody needs; unread, it would fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        let mut command = client.command("iperf3");
        let client = command
            .args(["--client", &to, "--port", &port, "--time", &seconds.to_string()])
            .args(["--interval", &wait::patient(Duration::from_millis(100)).as_secs_f64().to_string()])
            .args(["--connect-timeout", "5000", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting iperf3 --client")?;
        Ok(Self { server, client, what })
    }

    /// Waits for the end and returns the result.
    pub fn finish(mut self) -> Result<Throughput> {
        let mut json = String::new();
        self.client.stdout.take().expect("stdout was piped").read_to_string(&mut json)?;
        self.client.wait()?;
        parse(&json).with_context(|| self.what.clone())
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.server] {
            // Both fail only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Measures the throughput of TCP from start to end.
pub fn measure(server: &Netns, to: IpAddr, client: &Netns, seconds: u32) -> Result<Throughput> {
    Iperf::start(server, to, client, seconds)?.finish()
}

fn parse(json: &str) -> Result<Throughput> {
    let report: serde_json::Value = serde_json::from_str(json).context("reading iperf3's JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let received = &end["sum_received"];
    let number = |value: &serde_json::Value, name: &str| {
        value[name].as_f64().with_context(|| format!("iperf3's JSON has no number {name}"))
    };
    let bytes = number(received, "bytes")? as u64;
    ensure!(bytes > 0, "nothing was received");
    Ok(Throughput {
        gbits: number(received, "bits_per_second")? / 1e9,
        bytes,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        intervals: report["intervals"]
            .as_array()
            .map(|intervals| {
                intervals.iter().filter_map(|interval| interval["sum"]["bytes"].as_u64()).collect()
            })
            .unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let json = r#"{"intervals":[{"sum":{"bytes":5}},{"sum":{"bytes":0}}],
            "end":{"sum_sent":{"retransmits":3},"sum_received":{"bytes":125000000,"bits_per_second":1e9}}}"#;
        let throughput = parse(json).unwrap();
        assert_eq!((throughput.gbits, throughput.bytes, throughput.retransmits), (1.0, 125_000_000, 3));
        assert_eq!(throughput.intervals, [5, 0]);
    }

    #[test]
    fn an_error_is_passed_on() {
        let error = parse(r#"{"start":{},"error":"unable to connect to server"}"#).unwrap_err();
        assert_eq!(error.to_string(), "iperf3: unable to connect to server");
    }
}
