//! Keeps flows spread over the lanes by their ports, whoever changes that, and says once why they are not.

use crate::hands::{Hands, Seen};
use crate::kernel::spread;

/// What was said.
#[derive(Debug, Default)]
pub struct Spread(Option<String>);

impl Spread {
    /// For a node that has several lanes. One where that may not be set goes on without.
    pub fn by_ports(&mut self, hands: &Hands, seen: &mut Seen) {
        let result = hands.spread_by_ports();
        self.say(
            result,
            "all flows between two addresses may share a lane; set net.ipv4.fib_multipath_hash_policy=1 and \
             net.ipv6.fib_multipath_hash_policy=1 on this node",
        );
        seen.view.spread_by_ports = spread::by_ports();
    }

    /// For one that has one lane, or none.
    pub fn as_before(&mut self, hands: &Hands, seen: &mut Seen) {
        let result = hands.spread_as_before();
        self.say(result, "net.ipv4 or net.ipv6.fib_multipath_hash_policy stays as Warren set it");
        seen.view.spread_by_ports = spread::by_ports();
    }

    fn say(&mut self, result: anyhow::Result<()>, consequence: &str) {
        let error = result.err().map(|error| format!("{error:#}"));
        if error != self.0
            && let Some(error) = &error
        {
            tracing::warn!(error, "{consequence}");
        }
        self.0 = error;
    }
}
