//! What the program is doing, one line for each step.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Prints lines with the time since the start. On a terminal, an unfinished step's line is written over.
pub struct Progress {
    start: Instant,
    terminal: bool,
}

/// Return to the first column and erase the line (ECMA-48 EL).
const REWRITE: &str = "\r\x1b[K";

impl Progress {
    /// The clock starts now.
    pub fn start() -> Self {
        Self { start: Instant::now(), terminal: std::io::stdout().is_terminal() }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// How far an unfinished step is; nothing where lines cannot be written over.
    pub fn update(&self, step: &str, text: &str) {
        if self.terminal {
            print!("{REWRITE}{}", self.line(step, text));
            // A terminal that cannot be written to shows no progress; the step goes on.
            let _ = std::io::stdout().flush();
        }
    }

    /// What a step has come to.
    pub fn done(&self, step: &str, text: &str) {
        let rewrite = if self.terminal { REWRITE } else { "" };
        println!("{rewrite}{}", self.line(step, text));
    }

    fn line(&self, step: &str, text: &str) -> String {
        format!("{:6.1} s  {step:<8} {text}", self.seconds())
    }
}
