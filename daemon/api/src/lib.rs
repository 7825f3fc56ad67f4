//! The types that Warren's programs exchange, and nothing else: no I/O, no clock, no decisions.
//!
//! - [`announcement`]: what one node publishes about itself, as one JSON document.
//! - [`annotations`]: where on a Node the announcement and its essentials stand.
//! - [`node`]: the few fields of a Kubernetes Node that Warren reads.
//! - [`key`]: WireGuard public keys, checked when they are parsed.
//! - [`status`]: what a running `warrend` says of itself over HTTP.
//! - [`names`]: interfaces, tables, marks and paths that several programs must agree on.

pub mod annotations;
pub mod announcement;
pub mod key;
pub mod names;
pub mod node;
pub mod status;

pub use announcement::{Announcement, AnnouncementError, Backend, EpochKey};
pub use key::{KeyError, PublicKey};
pub use node::Node;
