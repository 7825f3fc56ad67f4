//! On what a run was made: without this, its figures mean nothing to anybody else.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};
use warren_testkit::process;

/// CPU features that WireGuard's ciphers, checksums and copies can use. The full list of flags says less.
const TELLING_FLAGS: [&str; 14] = [
    "ssse3",
    "sse4_2",
    "avx",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512ifma",
    "vaes",
    "gfni",
    "erms",
    "fsrm",
    "asimd",
    "sve",
];

/// The load of a machine on which nobody works.
const QUIET: f64 = 0.5;

/// A machine and the programs around the measured ones. What could not be found out is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// CPUs that this program may use.
    pub cores: usize,
    /// Of the processor's features those that matter here.
    pub flags: Vec<String>,
    /// MiB of memory.
    pub memory_mib: u64,
    /// Kernel release and architecture.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// The hypervisor, where there is one and it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hypervisor: String,
    /// The commit of Warren, with `-dirty` if it was changed since.
    pub commit: String,
    /// Versions of iperf3 and wg.
    pub tools: Vec<String>,
    /// Processes that wanted a CPU when the run began (one-minute load average).
    pub load: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = field(&cpuinfo, "flags").or(field(&cpuinfo, "Features")).unwrap_or_default();
        let words: Vec<&str> = flags.split_whitespace().collect();
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            flags: TELLING_FLAGS
                .iter()
                .filter(|flag| words.contains(flag))
                .map(|&flag| flag.into())
                .collect(),
            memory_mib: field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal")
                .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: format!("{} {}", kernel_release(), std::env::consts::ARCH),
            system: os_release(),
            hypervisor: fs::read_to_string("/sys/hypervisor/type")
                .ok()
                .or_else(|| words.contains(&"hypervisor").then(|| "yes".into()))
                .unwrap_or_default()
                .trim()
                .into(),
            commit: first_line(Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args([
                "describe",
                "--always",
                "--dirty",
                "--exclude=*",
            ])),
            tools: [["iperf3", "--version"], ["wg", "--version"]]
                .map(|[program, argument]| first_line(Command::new(program).arg(argument)))
                .into(),
            load: fs::read_to_string("/proc/loadavg")
                .ok()
                .and_then(|text| Some(text.split_whitespace().next()?.to_owned()))
                .unwrap_or_default(),
        }
    }

    /// A word on others who were working when the run began.
    fn disturbance(&self) -> &'static str {
        let quiet = self.load.parse::<f64>().is_ok_and(|load| load <= QUIET);
        if quiet { "" } else { ": NOT QUIET, so these figures say little about any other day" }
    }

    /// In lines for people.
    pub fn lines(&self) -> Vec<String> {
        let Self { cpu, cores, flags, memory_mib, kernel, system, hypervisor, commit, tools, load } = self;
        let under = if hypervisor.is_empty() { "" } else { ", under a hypervisor" };
        vec![
            format!("{cores} cores of {cpu}{under}, {memory_mib} MiB ({})", flags.join(" ")),
            format!("Linux {kernel}, {system}, load {load} at the start{}", self.disturbance()),
            format!("Warren {commit}, {}", tools.join(", ")),
        ]
    }
}

/// CPU-seconds that all processors have worked since the machine started: user, system, irq and softirq time. Not
/// that of niced processes, which are other people's.
pub fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    seconds(busy_ticks(&text).context("reading /proc/stat")?)
}

/// Clock ticks, in which the kernel counts processor time, in seconds.
pub fn seconds(ticks: u64) -> Result<f64> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the system has no clock tick")?;
    Ok(ticks as f64 / per_second as f64)
}

/// The fields are in proc_stat(5). Guests' time is part of user's.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, _nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    Some(user + system + irq + softirq)
}

/// The value of the first `name: value` in the text of a file in /proc.
fn field(text: &str, name: &str) -> Option<String> {
    let of_it = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(of_it)
}

/// As `uname -r` has it.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned())
}

fn os_release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

/// The first line a program prints, which is where versions are; empty where it does not run.
pub fn first_line(command: &mut Command) -> String {
    let text = process::output(command).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_cores() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_mib > 0, "{machine:?}");
        assert!(machine.kernel.contains(std::env::consts::ARCH), "{machine:?}");
    }

    #[test]
    fn busy_time_leaves_out_idle_stolen_and_nice() {
        let stat = "cpu  100 10 50 9999 888 3 7 777 5 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(160));
        assert!(busy_seconds().unwrap() > 0.0);
    }

    #[test]
    fn a_busy_machine_says_so() {
        let lines = |load: &str| Machine { load: load.into(), ..Machine::default() }.lines().concat();
        assert!(lines("4.12").contains("NOT QUIET") && !lines("0.10").contains("NOT QUIET"));
    }

    #[test]
    fn fields_of_proc_are_found() {
        let text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: avx vaes\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A CPU"));
        assert_eq!(field(text, "model"), None);
    }
}
