//! The positive control: what the sniffer sees when nothing hides it.

use anyhow::{Result, ensure};
use warren_testkit::capture::Capture;
use warren_testkit::lab::Lab;

use super::traffic;
use crate::progress::Progress;

/// Has one pod of each node ping one of the next, without Warren: all must be answered, and the sniffer must
/// read every one of them.
pub fn talk_in_the_clear(lab: &Lab, capture: &Capture, progress: &Progress) -> Result<()> {
    let pairs: Vec<_> = traffic::ring(lab).map(|(from, to)| (&from.pods[0], &to.pods[0])).collect();
    let pings = traffic::ping(&pairs, "control", progress)?;
    let report = capture.reset()?;
    // Each answered ping is two packets on the underlay.
    let expected = u64::from(2 * pings.answered);
    ensure!(
        report.dropped == 0 && report.clear >= expected,
        "the sniffer is blind: without Warren, {expected} packets in the clear were sent, and it saw {} \
         (and missed {})",
        report.clear,
        report.dropped
    );
    progress.done(
        "control",
        &format!(
            "without Warren {} of {} pings answered, {} packets in the clear seen by the sniffer",
            pings.answered, pings.sent, report.clear
        ),
    );
    Ok(())
}
