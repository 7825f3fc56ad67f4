//! Clients of the configuration socket, all served by one thread that none of them can hold up.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use zeroize::Zeroizing;

use super::control::OPERATIONS;
use crate::uapi::{Framed, SecretText};

/// Clients at once. One more makes the one go that has been silent for longest.
const MAX_CLIENTS: usize = 32;

/// How long to leave a client alone that cannot be taken in, when no other can be dropped for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One client: it sends requests, one after the other, and gets its answers in order.
pub struct Connection {
    stream: UnixStream,
    input: SecretText,
    scanned: usize,
    output: Zeroizing<String>,
    written: usize,
    active: Instant,
}

/// Whether a client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Over,
}

impl Connection {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: SecretText::default(),
            scanned: 0,
            output: Zeroizing::default(),
            written: 0,
            active: Instant::now(),
        })
    }

    /// What the client is waited for: to read its answer before it may send more, so that answers do not
    /// pile up.
    pub fn interest(&self) -> PollFlags {
        if self.written < self.output.len() { PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// Reads and answers as far as it goes without waiting, a bounded piece at a time.
    fn serve(&mut self, answer: impl Fn(&str) -> Zeroizing<String>) -> Life {
        self.active = Instant::now();
        self.exchange(answer).unwrap_or(Life::Over)
    }

    fn exchange(&mut self, answer: impl Fn(&str) -> Zeroizing<String>) -> io::Result<Life> {
        if self.flush()? == Life::Open && self.written < self.output.len() {
            return Ok(Life::Open);
        }
        let mut chunk = Zeroizing::new([0; 64 * 1024]);
        match self.stream.read(chunk.as_mut_slice()) {
            Ok(0) => return Ok(Life::Over),
            Ok(read) => self.input.extend(&chunk[..read]),
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(error),
        }
        while self.written == self.output.len() {
            if !OPERATIONS.iter().any(|operation| self.input.may_start_with(operation)) {
                tracing::debug!("a client does not speak the configuration protocol");
                return Ok(Life::Over);
            }
            match self.input.take_block(&mut self.scanned) {
                Framed::Incomplete => return Ok(Life::Open),
                Framed::Invalid => return Ok(Life::Over),
                Framed::Block(request) => {
                    self.output = answer(&request);
                    self.written = 0;
                    self.flush()?;
                }
            }
        }
        Ok(Life::Open)
    }

    fn flush(&mut self) -> io::Result<Life> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output.as_bytes()[self.written..]) {
                Ok(0) => return Ok(Life::Over),
                Ok(written) => self.written += written,
                Err(error) if is_wait(&error) => return Ok(Life::Open),
                Err(error) => return Err(error),
            }
        }
        Ok(Life::Open)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// All clients.
#[derive(Default)]
pub struct Connections(Vec<Connection>);

impl Connections {
    /// All, in a stable order.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.0.iter()
    }

    /// Takes one new client in, if there is one.
    pub fn accept(&mut self, listener: &UnixListener) {
        let connection = match listener.accept() {
            Ok((stream, _)) => Connection::new(stream),
            Err(error) => Err(error),
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                // Out of descriptors, most likely. The client stays in the backlog and would make us come
                // back at once, for ever.
                if !is_wait(&error) {
                    tracing::warn!(%error, "cannot take in a client; dropping a silent one");
                    if !self.drop_most_silent() {
                        std::thread::sleep(ACCEPT_PAUSE);
                    }
                }
                return;
            }
        };
        if self.0.len() >= MAX_CLIENTS {
            self.drop_most_silent();
        }
        self.0.push(connection);
    }

    fn drop_most_silent(&mut self) -> bool {
        let silent = (0..self.0.len()).min_by_key(|index| self.0[*index].active);
        silent.map(|index| self.0.swap_remove(index)).is_some()
    }

    /// Serves those clients of [`iter`](Self::iter) for which `ready` has a true.
    pub fn serve(&mut self, ready: &[bool], answer: impl Fn(&str) -> Zeroizing<String>) {
        let mut ready = ready.iter();
        self.0.retain_mut(|connection| {
            !ready.next().is_some_and(|ready| *ready) || connection.serve(&answer) == Life::Open
        });
    }
}
