//! The daemon under test, and what the kernel says of it (proc(5)).

use std::fmt;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_testkit::wait;

/// A running `warrend`. It ends with the namespace it runs in.
pub struct Daemon(pub Child);

/// Resident memory, in bytes.
pub struct Memory {
    /// Now.
    pub now: u64,
    /// The most there was.
    pub peak: u64,
}

impl Daemon {
    /// How much of its memory is resident.
    pub fn memory(&self) -> Result<Memory> {
        let text = self.proc("status")?;
        let figure = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).context("a figure is missing")?;
            let kib = line.split_whitespace().nth(1).context("a figure is missing")?;
            anyhow::Ok(kib.parse::<u64>()? << 10)
        };
        Ok(Memory { now: figure("VmRSS:")?, peak: figure("VmHWM:")? })
    }

    /// The CPU time that it and its ended children have taken.
    pub fn cpu(&self) -> Result<Duration> {
        let text = self.proc("stat")?;
        // utime, stime, cutime, cstime are the fields 14 to 17; the second, in parentheses, may hold blanks.
        let (_, fields) = text.rsplit_once(')').context("no command in /proc/PID/stat")?;
        let fields = fields.split_whitespace().skip(11).take(4);
        let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Waits until it has nothing to do: for half a second, it takes no CPU time but for what heartbeats take.
    pub fn settle(&self) -> Result<()> {
        let mut since = (Instant::now(), self.cpu()?);
        wait::until("the end of all looks", Duration::from_secs(30), || {
            let cpu = self.cpu()?;
            if cpu > since.1 + Duration::from_millis(20) {
                since = (Instant::now(), cpu);
            }
            ensure!(since.0.elapsed() > Duration::from_millis(500), "{} ms of CPU", cpu.as_millis());
            Ok(())
        })
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.0.id());
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(f, "{:.1} MiB resident, at most {:.1}", mib(self.now), mib(self.peak))
    }
}
