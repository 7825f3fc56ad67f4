//! The same kinds of traffic between two real machines, over whatever path there is: `server` on one, `client` on
//! the other.
//!
//! ```text
//!   client ──control (TCP, lines of JSON)──▶ server     one client at a time
//!          ──TCP streams, or datagrams─────▶            counted there, told over control
//!          ──ping──────────────────────────▶            answered by the kernel
//! ```
//!
//! It measures a path, not a program: run it once beside the tunnel and once through it (`--label`), and let
//! `report` compare the two runs, whose labels differ. The server takes traffic from anybody who reaches it, and forgets it.

mod client;
mod protocol;
mod server;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

/// Where the server listens for control. Streams and datagrams have ports of their own, which it chooses.
const PORT: u16 = 5179;

/// Options of `server`.
#[derive(Debug, Clone, Args)]
pub struct ServerOptions {
    /// Address and port to be found at; streams and datagrams use further ports of the same address.
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::from([0_u8; 16]), PORT))]
    pub listen: SocketAddr,
}

/// Options of `client`.
#[derive(Debug, Clone, Args)]
pub struct ClientOptions {
    /// Name or address of the machine where the server runs, on the path that is to be measured.
    pub host: String,
    /// Port of the server.
    #[arg(long, default_value_t = PORT)]
    pub port: u16,
    /// What the path is called in tables: plain, warren, …
    #[arg(long, default_value = "path")]
    pub label: String,
    /// What to do [default: all].
    #[arg(long, value_enum, value_delimiter = ',',
          default_values_t = Work::value_variants().to_vec(), hide_default_value = true)]
    pub scenario: Vec<Work>,
    /// How often each measurement is made.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of each measurement, after a warm-up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Keep every value in this file, which `warren-perf report` reads.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// One kind of measurement; those of `bench` that need nothing but a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// UDP, 1372 bytes of payload at 300 Mbit/s: what is lost.
    Udp,
    /// UDP, 1372 bytes of payload: the highest rate with less than 0.1 % lost.
    UdpMax,
    /// UDP, 64 bytes of payload: the highest rate with less than 0.1 % lost.
    Small,
    /// Round trips of an idle path.
    Rtt,
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().expect("no variant is skipped").get_name())
    }
}

/// Serves until interrupted.
pub fn serve(options: &ServerOptions) -> ExitCode {
    end("server", server::run(options))
}

/// Measures, prints and keeps.
pub fn measure(options: &ClientOptions) -> ExitCode {
    end("client", client::run(options))
}

fn end(what: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{what}: FAILED, {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn client_and_server_agree_on_what_arrived() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || server::serve(&listener));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.json");
        let options = ClientOptions {
            host: "127.0.0.1".into(),
            port,
            label: "loopback".into(),
            scenario: vec![Work::Tcp4, Work::Udp],
            rounds: 1,
            seconds: 1,
            json: Some(file.clone()),
        };
        client::run(&options).unwrap();
        let run = crate::record::Run::read(&file).unwrap();
        let value = |scenario, metric| run.values(scenario, "loopback", metric).get(&1).copied();
        assert!(value("tcp4", crate::record::Metric::Throughput).unwrap() > 0.01, "{:?}", run.samples);
        assert!(value("udp", crate::record::Metric::PacketRate).unwrap() > 100.0, "{:?}", run.samples);
    }
}
