//! The time in an initiation: TAI64N, twelve bytes of which the peer only wants to know whether they grow (whitepaper
//! section 5.1).

use std::time::Duration;

/// Seconds at 1970-01-01 in TAI64: 2^62, and the ten by which TAI was ahead of UTC. The kernel (`noise.c`) and wireguard-go
/// leave it at that; boringtun takes the 37 seconds of today. A peer takes no initiation that is older than the last: who
/// changes from one to the other is not heard for 27 seconds.
const EPOCH: u64 = (1 << 62) + 10;

/// A point in time. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub [u8; 12]);

impl Timestamp {
    /// The time so long after 1970-01-01, in UTC.
    pub fn since_unix_epoch(elapsed: Duration) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&EPOCH.saturating_add(elapsed.as_secs()).to_be_bytes());
        bytes[8..].copy_from_slice(&elapsed.subsec_nanos().to_be_bytes());
        Self(bytes)
    }

    /// Whether an initiation of this time is news to somebody who has answered one of `last`; remembers it if so.
    pub fn is_news(self, last: &mut Option<Self>) -> bool {
        let news = last.is_none_or(|last| self > last);
        if news {
            *last = Some(self);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_big_endian_tai64n() {
        let time = Timestamp::since_unix_epoch(Duration::new(0x0102_0304, 0x0506_0708));
        assert_eq!(time.0, [0x40, 0, 0, 0, 1, 2, 3, 4 + 10, 5, 6, 7, 8]);
    }

    #[test]
    fn only_later_ones_are_news() {
        let time = |secs, nanos| Timestamp::since_unix_epoch(Duration::new(secs, nanos));
        let mut last = None;
        assert!(time(255, 999_999_999).is_news(&mut last));
        for old in [time(255, 999_999_999), time(255, 999_999_998), time(254, 999_999_999), time(0, 0)] {
            assert!(!old.is_news(&mut last));
        }
        assert_eq!(last, Some(time(255, 999_999_999)));
        assert!(time(256, 0).is_news(&mut last));
        assert!(!time(255, 999_999_999).is_news(&mut last));
    }
}
