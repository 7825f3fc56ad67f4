//! Tunnels that do not answer, and for how long. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

/// After so many looks without an answer, about 15 s, a tunnel is taken for dead.
const SILENT_LOOKS: u32 = 15;

/// For how many looks in a row each tunnel has not answered.
#[derive(Debug, Default)]
pub struct Silence(BTreeMap<Arc<str>, u32>);

impl Silence {
    /// Counts one look, at which these were silent; returns those that have been for too long, whose count begins anew.
    pub fn count<'a>(&mut self, silent: impl Iterator<Item = &'a Arc<str>>) -> Vec<Arc<str>> {
        let before = std::mem::take(&mut self.0);
        let mut dead = Vec::new();
        for interface in silent {
            let looks = before.get(interface).copied().unwrap_or_default() + 1;
            if looks >= SILENT_LOOKS {
                dead.push(interface.clone());
            } else {
                self.0.insert(interface.clone(), looks);
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    #[test]
    fn each_tunnel_is_counted_alone() {
        let [one, other]: [Arc<str>; 2] = ["warren-a0".into(), "warren-a1".into()];
        let mut silence = Silence::default();
        for _ in 1..SILENT_LOOKS {
            assert!(silence.count([&one].into_iter()).is_empty());
        }
        // The other is silent for the first time, at the look at which the one has been for too long.
        assert_eq!(silence.count([&one, &other].into_iter()), from_ref(&one));
        for _ in 2..SILENT_LOOKS {
            assert!(silence.count([&one, &other].into_iter()).is_empty());
        }
        assert_eq!(silence.count([&one, &other].into_iter()), from_ref(&other));
        // An answer in between begins it anew.
        assert!(silence.count([].into_iter()).is_empty());
        for _ in 1..SILENT_LOOKS {
            assert!(silence.count([&one].into_iter()).is_empty());
        }
    }
}
