//! What client and server say to each other: one line of JSON each, in turn.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of this protocol; another is refused.
pub const VERSION: u32 = 1;

/// Longer than any measurement may take, so that a machine that vanished does not hold the other for ever.
const PATIENCE: Duration = Duration::from_secs(3700);

/// Longer than any line is.
const LONGEST: u64 = 4096;

/// From the client.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// First of all.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Take so many TCP streams, each to its end; then [`Answer::Streams`].
    Tcp {
        /// How many.
        streams: u32,
    },
    /// Count the datagrams of one stream, until [`Request::Stop`].
    Udp {
        /// Its number.
        stream: u32,
    },
    /// No more datagrams are sent: [`Answer::Datagrams`].
    Stop,
}

/// From the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The client is welcome.
    Welcome,
    /// Where to send to.
    Port {
        /// On the same address as control.
        port: u16,
    },
    /// What arrived in the streams.
    Streams {
        /// Bytes.
        bytes: u64,
        /// Seconds from the first connection to the end of the last.
        seconds: f64,
        /// CPU-seconds that this machine worked meanwhile.
        busy_seconds: f64,
    },
    /// What arrived of the datagrams.
    Datagrams {
        /// Their number.
        received: u64,
        /// Of these, those that came after a later one.
        overtaken: u64,
        /// CPU-seconds that this machine worked meanwhile.
        busy_seconds: f64,
    },
    /// It cannot be done.
    Sorry {
        /// Why.
        reason: String,
    },
}

/// One end of the control connection.
pub struct Control {
    reader: BufReader<TcpStream>,
}

impl Control {
    /// Takes over a connection.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Says one thing.
    pub fn say(&self, message: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(message)? + "\n";
        self.reader.get_ref().write_all(line.as_bytes()).context("the other end is gone")
    }

    /// Waits for the other end to say something; `None` when it has hung up.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let mut line = String::new();
        let mut limited = std::io::Read::take(&mut self.reader, LONGEST);
        if limited.read_line(&mut line).context("the other end is gone")? == 0 {
            return Ok(None);
        }
        ensure!(line.ends_with('\n'), "the other end is no warren-perf");
        Ok(Some(serde_json::from_str(&line).context("the other end speaks something else")?))
    }

    /// The connection, for its addresses.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }
}
