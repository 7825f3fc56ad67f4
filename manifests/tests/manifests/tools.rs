//! The programs that the tests call, found or fetched by `bin/tool.sh`.

use std::path::Path;
use std::process::Command;

/// A path in the folder of the manifests.
pub fn path(relative: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// The command that runs a tool.
pub fn tool(name: &str) -> Command {
    let found = run(Command::new(path("bin/tool.sh")).arg(name));
    let mut words = found.split_whitespace();
    let mut command = Command::new(words.next().expect("tool.sh prints a command"));
    command.args(words);
    command
}

/// What a command that must succeed prints.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
