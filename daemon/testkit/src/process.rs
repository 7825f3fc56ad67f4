//! Running a program to its end, with an error that tells what it said.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` and returns what it printed; an error carries its arguments and its complaint.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, "")
}

/// [`output`], with text on the program's standard input.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let shown = shown(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    // A program that ends without reading its input says why on its standard error, not here.
    let _ = child.stdin.take().expect("stdin was piped").write_all(input.as_bytes());
    let output = child.wait_with_output().with_context(|| format!("waiting for {shown}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{shown}: {}: {}{}",
            output.status,
            complaint.trim(),
            if input.is_empty() { "" } else { "\ninput:\n" }.to_owned() + input
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line, for a message.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
