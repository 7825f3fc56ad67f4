//! Traffic to measure with, over whatever path there is.
//!
//! - [`iperf`]: TCP, by iperf3, whose figures everybody knows.
//! - [`udp`]: datagrams at a steady rate, of which each is counted. iperf3 cannot: it sends one per system call, in
//!   bursts, and into a receive buffer that overflows before the path does.
//! - [`search`]: the highest rate at which a path loses next to nothing.
//! - [`ping`]: round trips, each of them.

pub mod iperf;
pub mod ping;
pub mod search;
pub mod udp;

/// Seconds of traffic before a measurement: buffers grow, memory is touched, clocks go up.
pub const WARM_UP: u32 = 1;

/// Bytes of UDP payload that fill a packet of MTU 1420 but for 20, as the targets have it.
pub const LARGE: usize = 1372;

/// Bytes of UDP payload of small packets.
pub const SMALL: usize = 64;

/// Datagrams of [`LARGE`] per second that make 300 Mbit/s of payload.
pub const FIXED_RATE: f64 = 300e6 / (8 * LARGE) as f64;

/// Between two pings of an idle path: long enough that both ends sleep.
pub const PING_INTERVAL: std::time::Duration = std::time::Duration::from_millis(5);
