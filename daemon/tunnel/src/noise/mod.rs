//! WireGuard's messages, handshakes and sessions: bytes in, bytes and keys out. No clock, no timers, no I/O; what has to
//! be known of the time is an argument.
//!
//! ```text
//!   Initiator::new ──initiation──▶ Responder::read ─▶ who is it? (the caller looks it up) ─▶ answer
//!   finish ◀─────────────────────────response────────────────────────────────────────────────┘ │
//!     └─▶ Keys ─▶ Transport ◀═══════════════════════data═════════════════════▶ Transport ◀─ Keys ┘
//! ```
//!
//! * [`message`]: what the four messages look like (whitepaper section 5.4).
//! * [`handshake`]: the two roles of Noise_IKpsk2 by the crate `snow` (5.4.2 to 5.4.5), which gets its primitives from
//!   [`primitives`]; the initiation's time from [`timestamp`].
//! * [`mac`]: what shows before any Diffie-Hellman that a handshake message is worth one (5.4.4, 5.4.7).
//! * [`transport`]: sealing and opening packets (5.4.6), with the window against replays of [`replay`], and
//!   with the AEAD of [`aead`].
//!
//! A [`transport::Transport`] belongs to one lane at a time, so it has no locks: sealing and opening are `&mut self`.
//!
//! **Secrets.** None is in a `Debug`. Those in types of this module are overwritten when they are dropped. Two are out of
//! our reach: `ring`, if it is the engine, keeps the transport keys, and `snow` a handshake's chaining key until its memory is
//! used again.

pub mod aead;
pub mod handshake;
pub mod mac;
pub mod message;
mod primitives;
pub mod replay;
#[cfg(test)]
mod tests;
pub mod timestamp;
pub mod transport;

/// Why a message, or a packet, is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A handshake message that its supposed sender has not made, or not for us, or under another PSK.
    #[error("a handshake message does not authenticate")]
    Handshake,
    /// A cookie reply that nobody made for what we sent last.
    #[error("a cookie reply does not authenticate, or answers nothing")]
    Cookie,
    /// A message for another handshake or session.
    #[error("a message has another receiver index")]
    Index,
    /// Data that the peer has not sealed.
    #[error("a data message does not authenticate")]
    Data,
    /// Data that was received before, or is too old to know.
    #[error("a data message was received before, or is too old to know")]
    Replay,
    /// Too many messages under one key (whitepaper section 6.1).
    #[error("the keys have served for as many messages as they may")]
    WornOut,
    /// The buffer is too small: a mistake of the caller's.
    #[error("a buffer is too small for the message")]
    NoRoom,
}
