//! Packets to be heard, or not to be: each module one kind of traffic with exact results.
//!
//! All of it carries [`crate::capture::CANARY`] in its payload where the program that makes it allows,
//! so that the capture recognises it behind any header.

pub mod flows;
pub mod inject;
pub mod iperf;
pub mod ping;
pub mod tcp;
pub mod udp;
