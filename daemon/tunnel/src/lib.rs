//! A complete userspace WireGuard for Linux.
//!
//! * [`uapi`]: the standard configuration protocol as types, for servers and clients alike. Pure text,
//!   but for its blocking `client`.

pub mod device;
pub mod uapi;
