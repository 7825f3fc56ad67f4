//! Going into the background, with somebody waiting in the foreground to hear whether that went well.
//!
//! ```text
//!   caller ── parent  waits for the child's word, passes it on as message and exit status
//!               └──── child   own session; serves; its word is "ready", or what went wrong
//! ```

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::exit;

use anyhow::{Context, Result};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, pipe, setsid};

use crate::sys::process::fork_single_threaded;

const READY: &str = "ready";

/// The child's side of the pipe to the waiting parent.
pub struct Background {
    parent: File,
    keep_stderr: bool,
}

/// Forks. The parent never returns: it waits for the child's word and exits. `keep_stderr`: the child goes
/// on writing its log there.
///
/// # Errors
/// When the system refuses; then there is no child.
pub fn into_background(keep_stderr: bool) -> Result<Background> {
    let (word, parent) = pipe().context("creating a pipe")?;
    if fork_single_threaded().context("going into the background")?.is_some() {
        drop(parent);
        // exit runs no destructors: interface and socket are the child's now.
        exit(pass_on(File::from(word)));
    }
    drop(word);
    let background = Background { parent: File::from(parent), keep_stderr };
    setsid().context("starting a session")?;
    chdir("/").context("leaving the directory")?;
    Ok(background)
}

/// The parent: waits for the word, or for the child's end without one.
fn pass_on(mut word: File) -> i32 {
    let mut text = String::new();
    match word.read_to_string(&mut text) {
        Ok(_) if text == READY => return 0,
        Ok(_) if text.is_empty() => eprintln!("warren-tunnel: ended while starting"),
        Ok(_) => eprintln!("warren-tunnel: {text}"),
        Err(error) => eprintln!("warren-tunnel: no word from the background: {error}"),
    }
    1
}

impl Background {
    /// Runs `serve`, which calls its argument once it is ready. An error before that is told to the
    /// parent, and is no longer this process's to tell.
    ///
    /// # Errors
    /// Those of `serve` from then on.
    pub fn report(self, serve: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<()>) -> Result<()> {
        let Self { parent, keep_stderr } = self;
        let parent = RefCell::new(Some(parent));
        let tell = |word: &str| {
            // Closed with it, or the parent would wait on. If it was killed, that does not concern us.
            parent.take().map(|mut parent| drop(parent.write_all(word.as_bytes())))
        };
        let result = serve(&|| {
            leave_terminal(keep_stderr)?;
            tell(READY);
            Ok(())
        });
        match result {
            Err(error) if tell(&format!("{error:#}")).is_none() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Lets go of the caller's terminal and pipes: whoever waits for their end need not wait for ours.
fn leave_terminal(keep_stderr: bool) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
    dup2_stdin(&null).context("redirecting standard input")?;
    dup2_stdout(&null).context("redirecting standard output")?;
    if !keep_stderr {
        dup2_stderr(&null).context("redirecting standard error")?;
    }
    Ok(())
}
