//! Warren's decisions, as pure code.
//!
//! ```text
//!   registry ─► Snapshot ─┐
//!                         ├─ plan ─► Desired ─┐
//!   kernel ──► Observed ──┴────────────────── ┴─ diff ─► [Action, …]
//! ```
//!
//! What comes in: a [`Snapshot`] of what the registry says, and what was [`Observed`] in the kernel and the
//! tunnel. What goes out: the [`Plan`] (what should be, who is quarantined and why) and the [`Action`]s that
//! lead from what is to what should be, in an order that opens no hole on the way.
//!
//! No clock, network, kernel or Kubernetes: times arrive as durations, and the crate depends on nothing that
//! could do I/O. The adapters of `warrend` read and apply; they decide nothing.

pub mod action;
pub mod claims;
pub mod desired;
pub mod diff;
pub mod nets;
pub mod numbers;
pub mod observed;
pub mod plan;
pub mod renewal;
pub mod snapshot;

pub use action::{Action, DeviceChange, PeerChange};
pub use desired::{Desired, Family, Guard, Port, Route, RouteKind, Rule, Tunnel, TunnelPeer};
pub use diff::diff;
pub use numbers::{Numbers, Priorities};
pub use observed::{Observed, ObservedDevice, ObservedLink, ObservedPeer, ObservedTunnel};
pub use plan::{PeerInfo, Plan, Standing, Withdrawal, overhead, plan};
pub use renewal::renewals;
pub use snapshot::{LocalAddress, NodeRecord, Own, Record, Settings, Snapshot};
