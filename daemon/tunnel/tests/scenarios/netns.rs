//! The test script that wireguard-go ships, against our program.

use std::io::{Read as _, Seek as _};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use warren_testkit::netns::Netns;
use warren_testkit::tools;

use super::site::WARREN;

/// Fetches the script and runs it.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bin/netns.sh");

/// What it says last, when all went well.
const LAST_WORDS: &str = "Objects that were created were also destroyed.";

/// Seconds after which something hangs: it takes 40 when nothing else runs.
const PATIENCE: &str = "900";

/// Lines of its output that a failure shows.
const SHOWN: usize = 20;

pub fn shipped_script() -> Result<()> {
    tools::requires(&["bash", "iperf3", "iptables", "ncat", "ping", "ping6", "ss", "timeout", "wg"])?;
    let netns = Netns::new("netns-sh")?;
    let said = run(&netns, WARREN)?;
    ensure!(said.success && said.text.contains(LAST_WORDS), "{}", said.end());
    Ok(())
}

/// It fails where a program does not do what it should: else it would prove nothing.
pub fn shipped_script_can_fail() -> Result<()> {
    let said = run(&Netns::new("netns-sh")?, "true")?;
    ensure!(!said.success && !said.text.contains(LAST_WORDS), "passed without any WireGuard: {}", said.end());
    Ok(())
}

/// What the script said.
struct Said {
    success: bool,
    text: String,
}

impl Said {
    fn end(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

/// Into a file: programs that the script leaves behind would hold a pipe open.
fn run(netns: &Netns, program: &str) -> Result<Said> {
    let mut file = tempfile::tempfile().context("a file for what the script says")?;
    let mut command = netns.command("timeout");
    command.args([PATIENCE, SCRIPT, "run", program]).stdin(Stdio::null());
    command.stdout(file.try_clone()?).stderr(file.try_clone()?);
    let success = command.status().context("starting the script")?.success();
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Said { success, text })
}
