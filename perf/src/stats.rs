//! The few statistics that measurements on a shared machine bear: median, extremes, quantiles, and ratios of what
//! was measured in the same round.

use std::collections::BTreeMap;

/// Median, smallest and largest of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of any values; `None` if there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// `value / base` of each round that has both. A machine that was slow for a while was so for both, so the ratios
/// of pairs spread less than the ratio of two medians. A base of 0 makes no pair.
pub fn ratios(values: &BTreeMap<u32, f64>, base: &BTreeMap<u32, f64>) -> Vec<f64> {
    let pairs = values.iter().filter_map(|(round, value)| Some((value, base.get(round)?)));
    pairs.filter(|(_, base)| **base != 0.0).map(|(value, base)| value / base).collect()
}

/// The smallest of the sorted values that at least the share `q` (0 to 1) of all does not exceed (nearest rank).
pub fn quantile(sorted: &[u32], q: f64) -> Option<u32> {
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let values = [(1, 6.0), (2, 8.0), (4, 1.0), (5, 1.0)].into();
        let base = [(1, 3.0), (2, 2.0), (3, 1.0), (5, 0.0)].into();
        assert_eq!(ratios(&values, &base), [2.0, 4.0]);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!(quantile(&sorted, 0.5), Some(50));
        assert_eq!(quantile(&sorted, 0.99), Some(99));
        assert_eq!(quantile(&sorted, 0.0), Some(1));
        assert_eq!(quantile(&sorted, 1.0), Some(100));
        assert_eq!(quantile(&[7], 0.999), Some(7));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
