//! A complete userspace WireGuard for Linux.
//!
//! * [`uapi`]: the standard configuration protocol as types, for servers and clients alike. Pure text,
//!   but for its blocking `client`.
//! * [`device`]: the protocol without I/O: packets and datagrams in, datagrams and packets out; upon
//!   `noise`, its messages, handshakes and keys.
//! * [`offload`]: many segments in one piece: splitting them before, coalescing them after. Pure.
//! * [`runtime`]: the device joined to a TUN interface, UDP sockets and a configuration socket; what the
//!   program `warren-tunnel` runs.
//! * [`aead`]: what encrypts the packets, and how to choose it.
//! * [`daemon`]: going into the background. [`demand`]: serving only while somebody wants it.

pub mod daemon;
pub mod demand;
pub mod device;
mod noise;
pub mod offload;
pub mod runtime;
mod sys;
pub mod uapi;

pub use noise::aead;
