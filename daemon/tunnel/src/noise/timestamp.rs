//! The time in an initiation: TAI64N, twelve bytes of which the peer only wants to know whether they grow (whitepaper
//! section 5.1).

use std::time::{Duration, SystemTime};

/// Seconds at 1970-01-01 in TAI64: 2^62, and the 37 by which TAI is ahead of UTC today, as in boringtun. The kernel
/// (`noise.c`) and wireguard-go take the ten of 1970. A peer takes no initiation that is not later than the last, so who
/// goes from 37 to ten is not heard for 27 seconds. These are 37 because Warren's sessions were boringtun's at first: a node
/// that is upgraded must not pass for a replay of itself.
const EPOCH: u64 = (1 << 62) + 37;

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

    /// The same of a clock.
    pub fn of(wall: SystemTime) -> Self {
        Self::since_unix_epoch(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// This time, or the next one after `last`: a clock that stands still or is set back keeps nobody from being heard.
    pub fn after(self, last: Option<Self>) -> Self {
        match last {
            Some(last) if self <= last => {
                // One more, as of one number of 96 bits.
                let mut bytes = last.0;
                for byte in bytes.iter_mut().rev() {
                    *byte = byte.wrapping_add(1);
                    if *byte != 0 {
                        break;
                    }
                }
                Self(bytes)
            }
            _ => self,
        }
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
        assert_eq!(time.0, [0x40, 0, 0, 0, 1, 2, 3, 4 + 37, 5, 6, 7, 8]);
    }

    #[test]
    fn those_we_send_grow_whatever_the_clock_does() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut last = None;
        for seconds in [1000, 1000, 3, 999, 1000, 1001, 0] {
            let next = Timestamp::of(at(seconds)).after(last);
            assert!(last.is_none_or(|last| next > last), "{seconds}");
            last = Some(next);
        }
        assert!(last < Some(Timestamp::of(at(1002))), "and are not far ahead of it");
        let full = Timestamp([1, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(full.after(Some(full)).0, [1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Timestamp::of(at(0) - Duration::from_secs(1)), Timestamp::of(at(0)));
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
