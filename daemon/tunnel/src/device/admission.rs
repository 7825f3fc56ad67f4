//! Who may make us compute: the gate before any handshake costs a Diffie-Hellman.
//!
//! ```text
//!              mac1 right?      under load?      mac2 (cookie) right?   tokens left for the source?
//! handshake ──▶ no: drop ──▶ no: ──▶ admitted
//!                            yes: ──────────────▶ no: cookie reply
//!                                                 yes: ──────────────────▶ no: drop
//!                                                                          yes: admitted
//! ```
//!
//! Whitepaper sections 5.3 and 5.4.7; kernel `cookie.c` and `ratelimiter.c`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use x25519_dalek::PublicKey;

use super::drops::Drop;
use crate::noise::mac::Checker;
use crate::noise::message::{COOKIE_REPLY, Handshake};

/// Handshake messages per second beyond which the device is under load. An initiation costs four
/// Diffie-Hellman of about 50 µs, so this many cost a fifth of a core; and a restart of a node with a
/// thousand peers, all of which then initiate, passes without the cookies' extra five seconds.
pub const HANDSHAKES_PER_SECOND: u64 = 1000;

/// Per source address and under load: this many handshakes per second…
const TOKENS_PER_SECOND: u32 = 20;
/// …and this many at once (kernel `ratelimiter.c`: PACKETS_PER_SECOND and PACKETS_BURSTABLE).
const TOKENS_AT_ONCE: u32 = 5;
/// Sources remembered at most, about 4 MB. Only addresses that answered a cookie get here, so this cannot
/// be filled with forged ones; when it is full, new ones wait until old ones were idle for a second.
const MAX_SOURCES: usize = 1 << 16;
/// What one handshake costs in time.
const TOKEN: Duration = Duration::from_millis(1000 / TOKENS_PER_SECOND as u64);
/// The most a source can save up.
const FULL: Duration = Duration::from_millis(1000 / TOKENS_PER_SECOND as u64 * TOKENS_AT_ONCE as u64);

/// The gate of one identity: a new private key needs a new gate, because MACs are keyed by public keys.
pub struct Gate {
    limit: u64,
    /// Handshake messages with a right mac1 in this second.
    seen: AtomicU64,
    checker: Checker,
    sources: Mutex<Sources>,
}

/// What the gate decided.
pub enum Verdict {
    /// Go on.
    Admit,
    /// Send this back to the source.
    Cookie([u8; COOKIE_REPLY]),
    /// Drop it.
    Refuse(Drop),
}

impl Gate {
    /// A gate in front of the owner of `public_key`, under load from `limit` handshakes per second.
    pub fn new(public_key: &PublicKey, limit: u64, now: Instant) -> Self {
        Self {
            limit,
            seen: AtomicU64::new(0),
            checker: Checker::new(public_key, now),
            sources: Mutex::new(Sources { full_at: HashMap::new(), swept: now }),
        }
    }

    /// Judges a handshake message from `source`.
    pub fn judge(&self, message: &impl Handshake, source: SocketAddr, now: Instant) -> Verdict {
        if !self.checker.is_mac1_right(message) {
            return Verdict::Refuse(Drop::Invalid);
        }
        if self.seen.fetch_add(1, Ordering::Relaxed) < self.limit {
            return Verdict::Admit;
        }
        if !self.checker.is_mac2_right(message, source, now) {
            return Verdict::Cookie(self.checker.reply(message, source, now));
        }
        if self.sources().take(source.ip(), now) {
            Verdict::Admit
        } else {
            Verdict::Refuse(Drop::RateLimited)
        }
    }

    /// To be called once a second: starts a new second, forgets idle sources.
    pub fn new_second(&self, now: Instant) {
        self.seen.store(0, Ordering::Relaxed);
        self.sources().sweep(now);
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Token buckets, each stored as one point in time: when it will be full again. A handshake moves it
/// [`TOKEN`] into the future, and is refused if that is further than [`FULL`] ahead.
struct Sources {
    full_at: HashMap<IpAddr, Instant>,
    swept: Instant,
}

impl Sources {
    fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = bucket(source);
        if self.full_at.len() >= MAX_SOURCES && !self.full_at.contains_key(&source) {
            return false;
        }
        let full_at = self.full_at.entry(source).or_insert(now);
        let next = (*full_at).max(now) + TOKEN;
        let allowed = next <= now + FULL;
        if allowed {
            *full_at = next;
        }
        allowed
    }

    fn sweep(&mut self, now: Instant) {
        if !self.full_at.is_empty() && now.saturating_duration_since(self.swept) >= Duration::from_secs(1) {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept = now;
        }
    }
}

/// IPv6 hosts own a /64, so that is one source.
fn bucket(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_a_burst_and_a_rate() {
        let start = Instant::now();
        let mut sources = Sources { full_at: HashMap::new(), swept: start };
        let first: IpAddr = "2001:db8::1".parse().unwrap();
        let same_host: IpAddr = "2001:db8::ffff:1".parse().unwrap();
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        let at_once = (0..20).filter(|_| sources.take(first, start)).count();
        assert_eq!(at_once, TOKENS_AT_ONCE as usize);
        assert!(!sources.take(same_host, start));
        assert!(sources.take(other, start));
        let second: usize = (1..=100)
            .map(|step| start + Duration::from_millis(10 * step))
            .filter(|now| sources.take(same_host, *now))
            .count();
        assert_eq!(second, TOKENS_PER_SECOND as usize);
        sources.sweep(start + Duration::from_secs(3));
        assert!(sources.full_at.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut sources = Sources { full_at: HashMap::new(), swept: now };
        for host in 0..2 * MAX_SOURCES as u32 {
            sources.take(IpAddr::V4(host.into()), now);
        }
        assert_eq!(sources.full_at.len(), MAX_SOURCES);
        assert!(sources.take(IpAddr::V4(0.into()), now), "known ones are still served");
    }
}
