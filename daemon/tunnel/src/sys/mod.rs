//! The system calls that nix has no safe wrapper for, and a C library; the only unsafe code of this crate.

#[cfg(test)]
pub mod counting;
pub mod ipsec_mb;
pub mod link;
pub mod mmsg;
pub mod namespace;
pub mod process;
pub mod socket;
pub mod steering;
pub mod tun;
