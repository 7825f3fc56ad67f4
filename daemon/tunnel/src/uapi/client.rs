//! Asking and setting over a configuration socket, blocking, each call bounded by one timeout.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use zeroize::Zeroizing;

use super::framing::{Framed, SecretText};
use super::parse::parse_set_reply;
use super::{DeviceState, DeviceUpdate, UapiError};

/// Why a program behind a configuration socket could not be asked or set.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach a WireGuard program at {path}: is it running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off or took longer than the timeout.
    #[error("the WireGuard program at {path} does not answer")]
    Talk {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It answered with an error, or with something else than the protocol.
    #[error("the WireGuard program at {path} answered badly")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// How.
        #[source]
        source: UapiError,
    },
}

/// Reads the whole state of the device behind `socket`.
///
/// # Errors
/// See [`ClientError`]; `timeout` bounds the call as a whole.
pub fn get(socket: &Path, timeout: Duration) -> Result<DeviceState, ClientError> {
    let reply = talk(socket, "get=1\n\n", timeout)?;
    DeviceState::parse(&reply).map_err(|source| ClientError::Answer { path: socket.to_owned(), source })
}

/// Applies `update` to the device behind `socket`: all of it, or nothing and an error.
///
/// # Errors
/// See [`ClientError`]; `timeout` bounds the call as a whole.
pub fn set(socket: &Path, update: &DeviceUpdate, timeout: Duration) -> Result<(), ClientError> {
    let reply = talk(socket, &update.encode(), timeout)?;
    parse_set_reply(&reply).map_err(|source| ClientError::Answer { path: socket.to_owned(), source })
}

/// One request, one answer.
fn talk(path: &Path, request: &str, timeout: Duration) -> Result<Zeroizing<String>, ClientError> {
    let deadline = Instant::now() + timeout;
    let mut stream =
        connect(path, timeout).map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
    exchange(&mut stream, request, deadline)
        .map_err(|source| ClientError::Talk { path: path.to_owned(), source })
}

/// Connects within `timeout`: a program that no longer accepts would otherwise block us for ever once its
/// backlog is full. The standard library has no timeout here; the kernel takes the sending one.
pub(crate) fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let micros = timeout.as_micros().clamp(1, 86_400_000_000) as i64;
    let timeval = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    socket::setsockopt(&fd, sockopt::SendTimeout, &timeval)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

fn exchange(stream: &mut UnixStream, request: &str, deadline: Instant) -> io::Result<Zeroizing<String>> {
    let mut unsent = request.as_bytes();
    while !unsent.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(unsent) {
            Ok(sent) => unsent = &unsent[sent..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The program may refuse and close before it has read all; its answer says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(error),
        }
    }
    let mut text = SecretText::default();
    let mut scanned = 0;
    let mut chunk = Zeroizing::new([0; 64 * 1024]);
    loop {
        match text.take_block(&mut scanned) {
            Framed::Block(reply) => return Ok(reply),
            Framed::Invalid => return Err(io::ErrorKind::InvalidData.into()),
            Framed::Incomplete => {}
        }
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(chunk.as_mut_slice()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => text.extend(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What is left until `deadline`; never zero, which would mean no timeout at all.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
