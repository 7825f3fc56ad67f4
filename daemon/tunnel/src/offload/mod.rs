//! Super-packets: many segments of one flow in one piece, as the kernel hands them over and takes them. Pure.
//!
//! ```text
//!   TUN ──vnet header, super-packet──▶ split ──segment, segment, …──▶ encryption
//!   TUN ◀──vnet header, super-packet── coalesce ◀──segment, segment, …── decryption
//! ```
//!
//! One system call and one walk through the network stack then move 64 KiB instead of 1420 bytes. What a
//! super-packet is, is told by the header that virtio network cards have ([`vnet`]; VIRTIO 1.3, section 5.1.6;
//! kernel `include/uapi/linux/virtio_net.h`).
//!
//! Nothing in a vnet header is believed but the segment size: where headers end is read from the packet itself, and where
//! a packet in a packet begins is checked by what is there.
//! Segments are coalesced only where splitting gives the same segments again, in the same order, and only after their
//! checksum was found right: a wrong one comes out as wrong as it went in.

pub mod checksum;
mod coalesce;
mod layout;
mod split;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod vnet;

pub use coalesce::{Coalescer, MAX_PARTS};
pub use split::{Malformed, SPARE, Segments};
