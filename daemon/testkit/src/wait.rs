//! Waiting for a condition instead of sleeping and hoping; and how slow this machine may be.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often a condition is looked at. Short beside everything that is waited for (handshakes, repairs of
/// up to 2 s), long beside the cost of a look. [`patient`]. What takes longer is looked at less often, down to every
/// `SELDOM` and by a twentieth too late: where looks are processes, they would hold up what they wait for.
const INTERVAL: Duration = Duration::from_millis(20);
const SELDOM: Duration = Duration::from_millis(100);

/// By what the times of this module and of the scenarios are multiplied: `$WARREN_TEST_PATIENCE`, else 1. They
/// are tuned for a processor; an emulated one is about ten times slower, and waits less than it computes.
static PATIENCE: LazyLock<f64> = LazyLock::new(|| match std::env::var("WARREN_TEST_PATIENCE") {
    Err(_) => 1.0,
    Ok(text) => text
        .parse()
        .ok()
        .filter(|factor| (1.0..=100.0).contains(factor))
        .unwrap_or_else(|| panic!("WARREN_TEST_PATIENCE is {text:?}, not a number from 1 to 100")),
});

/// How many times longer than a processor this machine may take.
pub fn patience() -> f64 {
    *PATIENCE
}

/// A time as it is on this machine: for limits, for figures of speed, and for the time between the packets of a
/// load. Never for what must not happen at all.
pub fn patient(time: Duration) -> Duration {
    time.mul_f64(patience())
}

/// Looks at `condition` until it holds, and returns what it gave; after `limit`, which is [`patient`], fails
/// with the last reason it gave for not holding.
///
/// ```
/// # use std::time::Duration;
/// let mut looks = 0;
/// let third = warren_testkit::wait::until("the third look", Duration::from_secs(5), || {
///     looks += 1;
///     if looks == 3 { Ok(looks) } else { anyhow::bail!("only {looks} looks so far") }
/// })?;
/// assert_eq!(third, 3);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Result<T>) -> Result<T> {
    until_with_progress(what, limit, condition, |_, _| {})
}

/// [`until`], telling `progress` after each vain look the time passed and the reason.
pub fn until_with_progress<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T>,
    mut progress: impl FnMut(Duration, &anyhow::Error),
) -> Result<T> {
    let start = Instant::now();
    let limit = patient(limit);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if start.elapsed() >= limit => {
                let waited = start.elapsed().as_secs_f64();
                return Err(anyhow!("{what} did not come about in {waited:.1} s; at last: {reason:#}"));
            }
            Err(reason) => progress(start.elapsed(), &reason),
        }
        std::thread::sleep((start.elapsed() / 20).clamp(patient(INTERVAL), patient(SELDOM)));
    }
}
