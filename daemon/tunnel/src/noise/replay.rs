//! Which counters were received: a sliding window, as RFC 6479 has it.
//!
//! ```text
//!            [64 bits][64 bits][64 bits] … [64 bits][64 bits]     a ring of words, one more than the window is long
//!                  ▲  ◀────────────── window ────────────▶ ▲
//!        oldest known │                                    │ greatest
//! ```
//!
//! The window is moved a word at a time: the bits of one counter never have to be shifted, and only words that come new
//! into the ring are cleared.

/// How many counters are known: the greatest, and those before it.
pub const WINDOW: u64 = 8192;

const BITS: u64 = u64::BITS as u64;
/// The word of the greatest counter may have just begun, so the window reaches into one word more.
const WORDS: u64 = WINDOW / BITS + 1;

/// See the module's text.
pub struct Window {
    /// The greatest counter that was received; 0 also before there was one, when no bit is set.
    greatest: u64,
    words: [u64; WORDS as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { greatest: 0, words: [0; WORDS as usize] }
    }
}

impl Window {
    /// Whether a counter was not received yet, as far as is known.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter > self.greatest {
            return true;
        }
        let (word, bit) = place(counter);
        self.greatest - counter < WINDOW && self.words[word] & bit == 0
    }

    /// Notes that a counter, which is [new](Self::is_new), was received. Only for authentic ones: it moves the window.
    pub fn note(&mut self, counter: u64) {
        if counter > self.greatest {
            let steps = (counter / BITS - self.greatest / BITS).min(WORDS);
            for step in 0..steps {
                self.words[((counter / BITS - step) % WORDS) as usize] = 0;
            }
            self.greatest = counter;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter / BITS % WORDS) as usize, 1 << (counter % BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// The same without a ring: everything that was ever received.
    #[derive(Default)]
    struct Naive {
        greatest: u64,
        received: HashSet<u64>,
    }

    impl Naive {
        fn is_new(&self, counter: u64) -> bool {
            !self.received.contains(&counter)
                && u128::from(counter) + u128::from(WINDOW) > u128::from(self.greatest)
        }

        fn note(&mut self, counter: u64) {
            self.greatest = self.greatest.max(counter);
            self.received.insert(counter);
        }
    }

    fn take(window: &mut Window, counter: u64) -> bool {
        let new = window.is_new(counter);
        if new {
            window.note(counter);
        }
        new
    }

    #[test]
    fn each_counter_is_taken_once() {
        let mut window = Window::default();
        for counter in 0..3 * WINDOW {
            assert!(take(&mut window, counter));
            assert!(!take(&mut window, counter));
        }
        assert!((2 * WINDOW..3 * WINDOW).all(|counter| !window.is_new(counter)));
    }

    #[test]
    fn the_window_is_as_long_as_it_says() {
        for greatest in [WINDOW - 1, WINDOW, 10 * WINDOW + 63, 10 * WINDOW + 64, u64::MAX] {
            let mut window = Window::default();
            assert!(take(&mut window, greatest));
            let oldest = greatest - (WINDOW - 1);
            if let Some(older) = oldest.checked_sub(1) {
                assert!(!window.is_new(older));
            }
            assert!((oldest..greatest).all(|counter| take(&mut window, counter)));
            assert!((oldest..=greatest).all(|counter| !window.is_new(counter)));
        }
    }

    #[test]
    fn a_leap_forgets_everything() {
        let mut window = Window::default();
        (0..WINDOW).for_each(|counter| window.note(counter));
        for leap in [WINDOW, 3 * WINDOW, 1 << 40] {
            let far = WINDOW + leap;
            window.note(far);
            assert!((far - WINDOW + 1..far).all(|counter| window.is_new(counter)), "{leap}");
        }
    }

    proptest! {
        #[test]
        fn is_as_a_set(
            start in prop_oneof![Just(0), 0..3 * WINDOW, Just(u64::MAX - 40_000)],
            steps in prop::collection::vec(prop_oneof![
                8 => -70_i64..70,
                4 => 0_i64..3000,
                2 => -9000_i64..9000,
                1 => -20_000_i64..20_000,
            ], 1..600),
        ) {
            let mut window = Window::default();
            let mut naive = Naive::default();
            let mut counter = start;
            for step in steps {
                counter = counter.saturating_add_signed(step);
                prop_assert_eq!(window.is_new(counter), naive.is_new(counter), "{}", counter);
                if window.is_new(counter) {
                    window.note(counter);
                    naive.note(counter);
                }
            }
            // Also what nobody asked for: a word that was not cleared shows only here.
            for counter in naive.greatest.saturating_sub(WINDOW + 70)..=naive.greatest.saturating_add(70) {
                prop_assert_eq!(window.is_new(counter), naive.is_new(counter), "{}", counter);
            }
        }
    }
}
