//! What traffic cost: processor time and memory of the programs on both ends.

use std::fs;

use anyhow::{Context, Result};

use super::site::Site;
use crate::machine;

/// Started before the traffic, read after it.
pub struct Meter {
    pids: Vec<u32>,
    programs: f64,
    machine: f64,
}

/// What passed between start and end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// CPU-seconds of the programs' processes; `None` where there are none, as in the kernel.
    pub programs: Option<f64>,
    /// CPU-seconds of the whole machine.
    pub machine: f64,
    /// The larger of the two ends' peak memory since their start, in MiB; `None` as above.
    pub peak_mib: Option<f64>,
}

impl Meter {
    /// Begins to count.
    pub fn start(site: &Site) -> Result<Self> {
        let pids = site.pids()?;
        Ok(Self { programs: processes_seconds(&pids)?, machine: machine::busy_seconds()?, pids })
    }

    /// Ends counting. Fails when one of the programs has ended meanwhile.
    pub fn stop(self) -> Result<Cost> {
        let machine = machine::busy_seconds()? - self.machine;
        let programs = processes_seconds(&self.pids)? - self.programs;
        let peaks: Vec<f64> = self.pids.iter().map(|pid| peak_mib(*pid)).collect::<Result<_>>()?;
        Ok(Cost {
            programs: (!self.pids.is_empty()).then_some(programs),
            machine,
            peak_mib: peaks.into_iter().reduce(f64::max),
        })
    }
}

/// User and system time of all threads.
fn processes_seconds(pids: &[u32]) -> Result<f64> {
    let ticks = pids.iter().map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} of the program has ended"))?;
        process_ticks(&text).with_context(|| format!("reading /proc/{pid}/stat"))
    });
    machine::seconds(ticks.sum::<Result<u64>>()?)
}

/// utime and stime, proc_pid_stat(5). The name before them may hold blanks and parentheses.
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    // The first of `fields` is number 3, the state.
    let mut fields = fields.split_whitespace().skip(14 - 3);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn peak_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} of the program has ended"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<f64> = kib.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    Ok(kib.with_context(|| format!("process {pid} has no VmHWM: it has ended"))? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_process_is_user_and_system() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 4 0 100 1 1";
        assert_eq!(process_ticks(stat), Some(300));
        assert_eq!(process_ticks("12 (x) S"), None);
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(peak_mib(std::process::id()).unwrap() > 0.5);
    }
}
