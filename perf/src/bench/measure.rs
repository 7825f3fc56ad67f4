//! One measurement of one scenario at one site.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cost::{Cost, Meter};
use super::scenario::Scenario;
use super::site::Site;
use crate::record::{Figures, Metric};
use crate::traffic::iperf::{self, Streams, Throughput};
use crate::traffic::udp::{Offer, Trial};
use crate::traffic::{FIXED_RATE, LARGE, PING_INTERVAL, SMALL, WARM_UP, ping, search, udp};

/// How long things take.
pub struct Settings {
    /// Seconds of each measurement.
    pub seconds: u32,
}

/// Warms the tunnel up and measures.
pub fn measure(site: &Site, scenario: Scenario, settings: &Settings) -> Result<Figures> {
    match scenario {
        Scenario::Tcp1 | Scenario::Peers | Scenario::Vxlan | Scenario::Jumbo | Scenario::Ipv6 => {
            tcp(site, Streams::Forward(1), settings)
        }
        Scenario::Tcp4 => tcp(site, Streams::Forward(4), settings),
        Scenario::TcpReverse => tcp(site, Streams::Reverse(1), settings),
        Scenario::Bidir => tcp(site, Streams::Both(1), settings),
        Scenario::Udp => fixed_rate(site, settings),
        Scenario::UdpMax => highest_rate(site, LARGE, settings),
        Scenario::Small => highest_rate(site, SMALL, settings),
        Scenario::Rtt => idle_round_trips(site, settings),
        Scenario::RttLoad => loaded_round_trips(site, settings),
    }
}

fn tcp(site: &Site, streams: Streams, settings: &Settings) -> Result<Figures> {
    iperf3(site, streams, WARM_UP).context("warming up")?;
    let meter = Meter::start(site)?;
    let throughput = iperf3(site, streams, settings.seconds)?;
    let mut figures = Figures::default();
    figures.values.extend(cost_of(meter.stop()?, throughput.bytes as f64));
    figures.values.insert(Metric::Throughput, throughput.gbits);
    figures.values.insert(Metric::Retransmits, throughput.retransmits as f64);
    Ok(figures)
}

fn iperf3(site: &Site, streams: Streams, seconds: u32) -> Result<Throughput> {
    let [server, client] = [&site.right, &site.left].map(|netns| netns.command("iperf3"));
    iperf::measure(server, site.target(), client, streams, seconds)
}

fn fixed_rate(site: &Site, settings: &Settings) -> Result<Figures> {
    let pair = UdpPair::new(site)?;
    pair.trial(Offer { rate: FIXED_RATE, payload: LARGE, seconds: WARM_UP.into() }).context("warming up")?;
    let meter = Meter::start(site)?;
    let trial = pair.trial(Offer { rate: FIXED_RATE, payload: LARGE, seconds: settings.seconds.into() })?;
    Ok(udp_figures(&trial, LARGE, meter.stop()?))
}

fn highest_rate(site: &Site, payload: usize, settings: &Settings) -> Result<Figures> {
    let pair = UdpPair::new(site)?;
    let mut cost = None;
    let found = search::highest(
        |rate| pair.trial(Offer { rate, payload, seconds: search::TRIAL }),
        |rate| {
            let meter = Meter::start(site)?;
            let trial = pair.trial(Offer { rate, payload, seconds: settings.seconds.into() })?;
            cost = Some(meter.stop()?);
            Ok(trial)
        },
    )?;
    let cost = cost.context("the search has confirmed nothing")?;
    Ok(Figures { at_least: found.sender_limit, ..udp_figures(&found.trial, payload, cost) })
}

fn idle_round_trips(site: &Site, settings: &Settings) -> Result<Figures> {
    let count = f64::from(settings.seconds) / PING_INTERVAL.as_secs_f64();
    let command = || site.left.command("ping");
    ping::round_trips(command(), site.target(), 20, PING_INTERVAL).context("warming up")?;
    round_trip_figures(ping::round_trips(command(), site.target(), count as u32, PING_INTERVAL)?)
}

fn loaded_round_trips(site: &Site, settings: &Settings) -> Result<Figures> {
    let seconds = WARM_UP + settings.seconds + 1;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| iperf3(site, Streams::Forward(1), seconds));
        std::thread::sleep(Duration::from_secs(WARM_UP.into()));
        let count = f64::from(settings.seconds) / PING_INTERVAL.as_secs_f64();
        let pings = ping::round_trips(site.left.command("ping"), site.target(), count as u32, PING_INTERVAL);
        let load = load.join().expect("iperf3's thread does not panic").context("the load")?;
        let mut figures = round_trip_figures(pings?)?;
        figures.values.insert(Metric::Throughput, load.gbits);
        Ok(figures)
    })
}

fn round_trip_figures(round_trips_us: Vec<u32>) -> Result<Figures> {
    Figures::of_round_trips(round_trips_us).context("no ping was answered")
}

fn udp_figures(trial: &Trial, payload: usize, cost: Cost) -> Figures {
    let mut figures = Figures::of_datagrams(trial, payload);
    let bytes = trial.received as f64 * payload as f64;
    figures.values.extend(cost_of(cost, bytes));
    figures
}

/// The cost of so many bytes of payload.
fn cost_of(cost: Cost, bytes: f64) -> impl Iterator<Item = (Metric, f64)> {
    let gigabytes = bytes / 1e9;
    let Cost { programs, machine, peak_mib } = cost;
    [
        Some((Metric::MachineCpu, machine / gigabytes)),
        programs.map(|seconds| (Metric::Cpu, seconds / gigabytes)),
        peak_mib.map(|mib| (Metric::Memory, mib)),
    ]
    .into_iter()
    .flatten()
}

/// A socket on each end, the left one connected to the right one.
struct UdpPair {
    sender: UdpSocket,
    receiver: UdpSocket,
    next_stream: AtomicU32,
}

impl UdpPair {
    fn new(site: &Site) -> Result<Self> {
        let bind = |address| move || UdpSocket::bind(SocketAddr::new(address, 0));
        let receiver = site.right.run(bind(site.target()))?.context("binding a UDP socket")?;
        let sender = site.left.run(bind(site.source()))?.context("binding a UDP socket")?;
        sender.connect(receiver.local_addr()?)?;
        Ok(Self { sender, receiver, next_stream: AtomicU32::new(1) })
    }

    fn trial(&self, offer: Offer) -> Result<Trial> {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        udp::trial(&self.sender, &self.receiver, &offer, stream)
    }
}
