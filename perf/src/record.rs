//! What a run measured, as it is kept: one JSON document with every single value, so that whoever doubts a
//! median can take it apart.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats;
use crate::traffic::udp::Trial;

/// The version of this format. Another is refused rather than guessed at.
const FORMAT: u32 = 1;

/// One run: what was measured, with what, on what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    format: u32,
    /// When it began, RFC 3339, UTC.
    pub started: String,
    /// The command line that made it.
    pub command: String,
    /// Where it was made.
    pub machine: Machine,
    /// What was measured, in the order of tables; also what should have been and could not.
    pub programs: Vec<ProgramNote>,
    /// Seconds of each measurement.
    pub seconds: u32,
    /// How often each was made.
    pub rounds: u32,
    /// Everything measured, in the order it was.
    pub samples: Vec<Sample>,
}

/// A program of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramNote {
    /// As in [`Sample::program`].
    pub name: String,
    /// What it says it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it was not measured, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// One measurement of one program in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was done, by the name that `--scenario` takes.
    pub scenario: String,
    /// Which program it went through.
    pub program: String,
    /// In which round, from 1. Values of one round were measured close together, so these are compared.
    pub round: u32,
    /// What came of it.
    #[serde(flatten)]
    pub figures: Figures,
    /// Why there are no figures, if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed: Option<String>,
}

/// The values of one measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// One value of each kind.
    #[serde(default)]
    pub values: BTreeMap<Metric, f64>,
    /// Each single round trip in µs, in the order they were answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub round_trips_us: Vec<u32>,
    /// Whether the rate is the highest that the sender could make, so that the path may carry more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
}

/// What can be measured. The names in the document have the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Payload received, in Gbit/s; with several streams or directions the sum of them.
    #[serde(rename = "gbit_per_s")]
    Throughput,
    /// UDP datagrams received per second.
    #[serde(rename = "packets_per_s")]
    PacketRate,
    /// UDP datagrams lost, in percent of those sent.
    #[serde(rename = "loss_percent")]
    Loss,
    /// Median of the round trips, in µs.
    #[serde(rename = "rtt_median_us")]
    Rtt,
    /// 99th percentile of the round trips, in µs.
    #[serde(rename = "rtt_p99_us")]
    RttTail,
    /// CPU-seconds of the program's processes on both ends, for each GB (10^9 bytes) of payload.
    #[serde(rename = "cpu_s_per_gb")]
    Cpu,
    /// CPU-seconds of the whole machine for each GB: with the kernel's part, the traffic generator and whatever
    /// else ran. The only cost that can be had of WireGuard in the kernel.
    #[serde(rename = "machine_cpu_s_per_gb")]
    MachineCpu,
    /// The larger of the two ends' peak resident memory (VmHWM) since their start, in MiB.
    #[serde(rename = "peak_mib")]
    Memory,
    /// TCP segments sent again.
    #[serde(rename = "retransmits")]
    Retransmits,
}

impl Figures {
    /// Median and tail of round trips in µs; `None` if there are none.
    pub fn of_round_trips(round_trips_us: Vec<u32>) -> Option<Self> {
        let mut sorted = round_trips_us.clone();
        sorted.sort_unstable();
        let quantile = |q| stats::quantile(&sorted, q).map(f64::from);
        let values = [(Metric::Rtt, quantile(0.5)?), (Metric::RttTail, quantile(0.99)?)].into();
        Some(Self { values, round_trips_us, at_least: false })
    }

    /// What became of datagrams with so many bytes of payload each.
    pub fn of_datagrams(trial: &Trial, payload: usize) -> Self {
        let values = [
            (Metric::Loss, trial.loss_percent()),
            (Metric::PacketRate, trial.rate()),
            (Metric::Throughput, trial.rate() * (8 * payload) as f64 / 1e9),
        ];
        Self { values: values.into(), ..Self::default() }
    }
}

impl Metric {
    /// What a person calls it, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::PacketRate => "kpackets/s",
            Self::Loss => "loss %",
            Self::Rtt => "RTT median µs",
            Self::RttTail => "RTT 99 % µs",
            Self::Cpu => "CPU-s/GB",
            Self::MachineCpu => "machine CPU-s/GB",
            Self::Memory => "peak MiB",
            Self::Retransmits => "retransmits",
        }
    }

    /// A value in the unit of [`Metric::title`], with as many digits as mean something.
    pub fn show(self, value: f64) -> String {
        let value = if self == Self::PacketRate { value / 1000.0 } else { value };
        let digits = match value.abs() {
            0.0 => 0,
            ..0.1 => 3,
            ..10.0 => 2,
            ..100.0 => 1,
            _ => 0,
        };
        format!("{value:.digits$}")
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Throughput | Self::PacketRate)
    }
}

impl Run {
    /// A run that begins now and has measured nothing yet.
    pub fn new(machine: Machine, programs: Vec<ProgramNote>, seconds: u32, rounds: u32) -> Self {
        let command: Vec<String> = std::env::args().skip(1).collect();
        Self {
            format: FORMAT,
            started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            command: format!("warren-perf {}", command.join(" ")),
            machine,
            programs,
            seconds,
            rounds,
            samples: Vec::new(),
        }
    }

    /// Reads a document that [`Run::write`] wrote.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let run: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no run of warren-perf", file.display()))?;
        ensure!(
            run.format == FORMAT,
            "{} has format {}, this program reads {FORMAT}: use the one that wrote it",
            file.display(),
            run.format
        );
        Ok(run)
    }

    /// Writes the document as a whole, or leaves what was there. One line for each sample, so that it can be read
    /// and compared.
    pub fn write(&self, file: &Path) -> Result<()> {
        let samples: Vec<String> =
            self.samples.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        let head = Self { samples: Vec::new(), ..self.clone() };
        let head = serde_json::to_string_pretty(&head)?;
        let text =
            head.replace("\"samples\": []", &format!("\"samples\": [\n    {}\n  ]", samples.join(",\n    ")));
        let new = file.with_extension("json.new");
        std::fs::write(&new, text + "\n")
            .and_then(|()| std::fs::rename(&new, file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// The values of one kind, by round.
    pub fn values(&self, scenario: &str, program: &str, metric: Metric) -> BTreeMap<u32, f64> {
        self.samples
            .iter()
            .filter(|sample| sample.scenario == scenario && sample.program == program)
            .filter_map(|sample| Some((sample.round, *sample.figures.values.get(&metric)?)))
            .collect()
    }

    /// Whether in some round the sender was the limit of a program in a scenario.
    pub fn at_least(&self, scenario: &str, program: &str) -> bool {
        let of_it = |sample: &&Sample| sample.scenario == scenario && sample.program == program;
        self.samples.iter().filter(of_it).any(|sample| sample.figures.at_least)
    }

    /// All round trips of all rounds in µs, sorted.
    pub fn round_trips(&self, scenario: &str, program: &str) -> Vec<u32> {
        let mut all: Vec<u32> = self
            .samples
            .iter()
            .filter(|sample| sample.scenario == scenario && sample.program == program)
            .flat_map(|sample| sample.figures.round_trips_us.iter().copied())
            .collect();
        all.sort_unstable();
        all
    }

    /// Whether it is of a path between two machines, made by `client`, and not of programs.
    pub fn is_of_a_path(&self) -> bool {
        self.command.starts_with("warren-perf client ")
    }

    /// The programs that were measured.
    pub fn measured(&self) -> impl Iterator<Item = &ProgramNote> {
        self.programs.iter().filter(|program| program.missing.is_none())
    }

    /// The scenarios that were measured, in the order they were.
    pub fn scenarios(&self) -> Vec<&str> {
        let mut seen: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !seen.contains(&sample.scenario.as_str()) {
                seen.push(&sample.scenario);
            }
        }
        seen
    }

    /// The kinds of values that a scenario has.
    pub fn metrics(&self, scenario: &str) -> Vec<Metric> {
        let of_it = self.samples.iter().filter(|sample| sample.scenario == scenario);
        let metrics = of_it.flat_map(|sample| sample.figures.values.keys().copied());
        metrics.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// How many measurements of a program in a scenario failed.
    pub fn failures(&self, scenario: &str, program: &str) -> usize {
        let failed = |sample: &&Sample| {
            sample.scenario == scenario && sample.program == program && sample.failed.is_some()
        };
        self.samples.iter().filter(failed).count()
    }

    /// Why a program has no value in a scenario: the first failure, or that it is missing.
    pub fn why_not(&self, scenario: &str, program: &str) -> String {
        let failed = self
            .samples
            .iter()
            .filter(|sample| sample.scenario == scenario && sample.program == program)
            .find_map(|sample| sample.failed.clone());
        let missing = || self.programs.iter().find(|note| note.name == program)?.missing.clone();
        failed.or_else(missing).unwrap_or_else(|| format!("{scenario} was not run with {program}"))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run with these (scenario, program, metric, values by round).
    pub fn run_of(values: &[(&str, &str, Metric, &[f64])]) -> Run {
        let mut run = Run::new(Machine::default(), Vec::new(), 1, 1);
        for (scenario, program, metric, values) in values {
            if !run.programs.iter().any(|note| note.name == *program) {
                run.programs.push(ProgramNote { name: (*program).into(), version: None, missing: None });
            }
            for (at, value) in values.iter().enumerate() {
                run.samples.push(Sample {
                    scenario: (*scenario).into(),
                    program: (*program).into(),
                    round: at as u32 + 1,
                    figures: Figures { values: [(*metric, *value)].into(), ..Figures::default() },
                    failed: None,
                });
            }
        }
        run
    }

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.json");
        let mut run = run_of(&[("tcp1", "warren", Metric::Throughput, &[5.0, 5.25])]);
        run.samples[0].figures.round_trips_us = vec![67, 71];
        run.samples[1].failed = Some("it ended".into());
        run.samples[1].figures.at_least = true;
        run.write(&file).unwrap();
        let read = Run::read(&file).unwrap();
        assert_eq!(read.samples, run.samples);
        assert_eq!((read.started, read.programs), (run.started, run.programs));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(r#"{"scenario":"tcp1","program":"warren","round":1,"values":{"gbit_per_s":5.0}"#)
        );
    }

    #[test]
    fn another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.json");
        run_of(&[]).write(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap().replace("\"format\": 1", "\"format\": 2");
        std::fs::write(&file, text).unwrap();
        assert!(Run::read(&file).unwrap_err().to_string().contains("has format 2"));
    }

    #[test]
    fn values_are_shown_with_the_digits_they_have() {
        assert_eq!(Metric::Throughput.show(5.218), "5.22");
        assert_eq!(Metric::Throughput.show(20.71), "20.7");
        assert_eq!(Metric::PacketRate.show(181_234.0), "181");
        assert_eq!(Metric::Loss.show(0.0), "0");
        assert_eq!(Metric::Loss.show(0.0123), "0.012");
    }
}
