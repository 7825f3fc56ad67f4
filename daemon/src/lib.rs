//! `warrend`, the per-node control daemon of Warren.
//!
//! ```text
//!  registry ─┐                              ┌─► guard      (nftables)
//!  kernel ───┼─► agent ── warren-core ──────┼─► kernel     (addresses, routes, rules, MTU)
//!  timer ────┘   (one loop owns all state)  ├─► tunnel     (warren-tunnel, over its socket)
//!                                           └─► registry   (the own announcement, Events)
//! ```
//!
//! Level-triggered: whatever happens, the agent looks at the registry and reads everything back from the
//! kernel and the tunnel, lets `warren-core` compute the difference to what should be, and applies that. An
//! event is only a reason to look now; a timer looks anyway. Nothing is remembered of what was applied, but for what the
//! node's own settings were before ([`before`]).
//!
//! Each adapter is one module that reads or applies and decides nothing. The daemon's end changes nothing on
//! the node: tunnel, routes and guard stay, and traffic goes on encrypted.

pub mod agent;
pub mod args;
pub mod before;
pub mod blocking;
pub mod guard;
pub mod hands;
pub mod happening;
pub mod hardening;
pub mod http;
pub mod kernel;
pub mod keystore;
pub mod logs;
pub mod marks;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod paths;
pub mod registry;
pub mod report;
pub mod rewrites;
pub mod settings;
mod silence;
mod spread;
pub mod tunnel;
pub mod wireguard;
