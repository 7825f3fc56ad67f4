//! Waiting for a condition instead of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often a condition is looked at. Short beside everything that is waited for (handshakes, repairs of
/// up to 2 s), long beside the cost of a look.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `condition` until it holds, and returns what it gave; after `limit`, fails with the last
/// reason it gave for not holding.
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
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if start.elapsed() >= limit => {
                let waited = start.elapsed().as_secs_f64();
                return Err(anyhow!("{what} did not come about in {waited:.1} s; at last: {reason:#}"));
            }
            Err(reason) => progress(start.elapsed(), &reason),
        }
        std::thread::sleep(INTERVAL);
    }
}
