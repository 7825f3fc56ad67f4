//! The end that sends.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::protocol::{Answer, Control, Request, VERSION};
use super::{ClientOptions, Work};
use crate::bench::results;
use crate::machine::{Machine, busy_seconds};
use crate::progress::Progress;
use crate::record::{Figures, Metric, ProgramNote, Run, Sample};
use crate::summary;
use crate::traffic::udp::{self, Offer, Trial};
use crate::traffic::{FIXED_RATE, LARGE, PING_INTERVAL, SMALL, WARM_UP, ping, search};

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures all that was asked for, prints the table, and keeps the run.
pub fn run(options: &ClientOptions) -> Result<()> {
    let ClientOptions { host, port, label, scenario, rounds, seconds, json } = options;
    let mut server = Server::connect(host, *port)?;
    let progress = Progress::start();
    let machine = Machine::here();
    machine.lines().iter().for_each(|line| progress.done("machine", line));
    let version = Some(format!("the path to {}", server.address.ip()));
    let note = ProgramNote { name: label.clone(), version, missing: None };
    let mut run = Run::new(machine, vec![note], *seconds, *rounds);
    for round in 1..=*rounds {
        for work in scenario {
            progress.update(&format!("{round}/{rounds}"), &work.to_string());
            let measured = server.measure(*work, *seconds);
            let (figures, failed) = match measured {
                Ok(figures) => (figures, None),
                Err(error) => (Figures::default(), Some(format!("{error:#}"))),
            };
            let headline = summary::headline(&work.to_string());
            let said = match (&failed, figures.values.get(&headline)) {
                (None, Some(value)) => {
                    let mark = summary::mark(figures.at_least);
                    format!("{mark}{} {}", headline.show(*value), headline.title())
                }
                (reason, _) => format!("FAILED ({})", reason.as_deref().unwrap_or("no figure")),
            };
            progress.done(&format!("{round}/{rounds}"), &format!("{:<11} {said}", work.to_string()));
            let (scenario, program) = (work.to_string(), label.clone());
            run.samples.push(Sample { scenario, program, round, figures, failed });
        }
        if let Some(file) = json {
            run.write(file)?;
        }
    }
    println!("\n{}", results(&run));
    let failed = run.samples.iter().filter(|sample| sample.failed.is_some()).count();
    ensure!(failed == 0, "{failed} of {} measurements failed", run.samples.len());
    Ok(())
}

/// The other machine.
struct Server {
    address: SocketAddr,
    control: Control,
    next_stream: u32,
}

impl Server {
    fn connect(host: &str, port: u16) -> Result<Self> {
        let unreachable = || {
            format!(
                "no server at {host} port {port}: is `warren-perf server` running there, is the port open?"
            )
        };
        let addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host, port)).with_context(unreachable)?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Self::greet(address, stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("the name has no address")?).with_context(unreachable)
    }

    fn greet(address: SocketAddr, stream: TcpStream) -> Result<Self> {
        let mut server = Self { address, control: Control::new(stream)?, next_stream: 1 };
        match server.ask(&Request::Hello { version: VERSION })? {
            Answer::Welcome => Ok(server),
            answer => bail!("{address} answers the greeting with {answer:?}"),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        self.control.say(request)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        match self.control.hear()?.context("the server has hung up")? {
            Answer::Sorry { reason } => bail!("the server says: {reason}"),
            answer => Ok(answer),
        }
    }

    /// Asks where to send to.
    fn port_for(&mut self, request: &Request) -> Result<SocketAddr> {
        match self.ask(request)? {
            Answer::Port { port } => Ok(SocketAddr::new(self.address.ip(), port)),
            answer => bail!("the server answers {request:?} with {answer:?}"),
        }
    }

    fn measure(&mut self, work: Work, seconds: u32) -> Result<Figures> {
        let long = f64::from(seconds);
        match work {
            Work::Tcp1 => self.tcp(1, seconds),
            Work::Tcp4 => self.tcp(4, seconds),
            Work::Udp => {
                let offer = Offer { rate: FIXED_RATE, payload: LARGE, seconds: long };
                let (trial, busy) = self.udp(offer)?;
                Ok(datagram_figures(&trial, LARGE, busy))
            }
            Work::UdpMax => self.highest_rate(LARGE, long),
            Work::Small => self.highest_rate(SMALL, long),
            Work::Rtt => {
                let count = long / PING_INTERVAL.as_secs_f64();
                let trips =
                    ping::round_trips(Command::new("ping"), self.address.ip(), count as u32, PING_INTERVAL)?;
                Figures::of_round_trips(trips).context("no ping was answered")
            }
        }
    }

    fn tcp(&mut self, streams: u32, seconds: u32) -> Result<Figures> {
        self.send_streams(streams, WARM_UP).context("warming up")?;
        let (bytes, seconds, busy) = self.send_streams(streams, seconds)?;
        ensure!(bytes > 0, "nothing arrived");
        let values = [
            (Metric::Throughput, bytes as f64 * 8.0 / seconds / 1e9),
            (Metric::MachineCpu, busy / (bytes as f64 / 1e9)),
        ];
        Ok(Figures { values: values.into(), ..Figures::default() })
    }

    /// Returns bytes that arrived, seconds, and CPU-seconds of both machines.
    fn send_streams(&mut self, streams: u32, seconds: u32) -> Result<(u64, f64, f64)> {
        let to = self.port_for(&Request::Tcp { streams })?;
        let busy = busy_seconds()?;
        let end = Instant::now() + Duration::from_secs(seconds.into());
        std::thread::scope(|scope| {
            let connect = |_| TcpStream::connect_timeout(&to, PATIENCE).context("opening a stream");
            let connected: Vec<TcpStream> = (0..streams).map(connect).collect::<Result<_>>()?;
            let writers: Vec<_> =
                connected.into_iter().map(|stream| scope.spawn(move || fill(stream, end))).collect();
            writers.into_iter().try_for_each(|writer| writer.join().expect("fill does not panic"))
        })?;
        match self.answer()? {
            Answer::Streams { bytes, seconds, busy_seconds: theirs } => {
                Ok((bytes, seconds, theirs + busy_seconds()? - busy))
            }
            answer => bail!("the server answers streams with {answer:?}"),
        }
    }

    fn highest_rate(&mut self, payload: usize, long: f64) -> Result<Figures> {
        let mut busy = 0.0;
        let this = std::cell::RefCell::new(self);
        let found = search::highest(
            |rate| Ok(this.borrow_mut().udp(Offer { rate, payload, seconds: search::TRIAL })?.0),
            |rate| {
                let (trial, spent) = this.borrow_mut().udp(Offer { rate, payload, seconds: long })?;
                busy = spent;
                Ok(trial)
            },
        )?;
        let figures = datagram_figures(&found.trial, payload, busy);
        Ok(Figures { at_least: found.sender_limit, ..figures })
    }

    /// Returns what became of the offer, and CPU-seconds of both machines.
    fn udp(&mut self, offer: Offer) -> Result<(Trial, f64)> {
        let stream = self.next_stream;
        self.next_stream += 1;
        let to = self.port_for(&Request::Udp { stream })?;
        let busy = busy_seconds()?;
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        let (sent, seconds) = udp::send(&socket, &offer, stream)?;
        match self.ask(&Request::Stop)? {
            Answer::Datagrams { received, overtaken, busy_seconds: theirs } => {
                let busy = theirs + busy_seconds()? - busy;
                Ok((Trial { sent, received, overtaken, seconds }, busy))
            }
            answer => bail!("the server answers datagrams with {answer:?}"),
        }
    }
}

/// Writes until `end`.
fn fill(mut stream: TcpStream, end: Instant) -> Result<()> {
    let buffer = vec![0x5a; 1 << 17];
    stream.set_write_timeout(Some(PATIENCE))?;
    while Instant::now() < end {
        stream.write_all(&buffer).context("writing a stream")?;
    }
    Ok(())
}

fn datagram_figures(trial: &Trial, payload: usize, busy: f64) -> Figures {
    let mut figures = Figures::of_datagrams(trial, payload);
    let gigabytes = trial.received as f64 * payload as f64 / 1e9;
    if gigabytes > 0.0 {
        figures.values.insert(Metric::MachineCpu, busy / gigabytes);
    }
    figures
}
