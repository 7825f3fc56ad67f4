//! What has gone through each lane since it was made, from `/sys/class/net/INTERFACE/statistics`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use warren_api::names;

/// Where the kernel shows its interfaces.
const INTERFACES: &str = "/sys/class/net";

/// One lane of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// `warren-a0`.
    pub interface: String,
    /// The number that the kernel gave it.
    pub index: usize,
    /// Packets before they are encrypted.
    pub sent: Count,
    /// Packets after they were decrypted.
    pub received: Count,
}

/// So much of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The lanes there are, in the order of their names.
pub fn read() -> Result<Vec<Lane>> {
    let entries = fs::read_dir(INTERFACES).with_context(|| format!("reading {INTERFACES}"))?;
    let mut lanes = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {INTERFACES}"))?;
        let Some(interface) =
            entry.file_name().to_str().filter(|name| names::is_tunnel(name)).map(str::to_owned)
        else {
            continue;
        };
        let number = |file: &str| number(&entry.path().join(file));
        let count = |direction: &str| {
            anyhow::Ok(Count {
                packets: number(&format!("statistics/{direction}_packets"))?,
                bytes: number(&format!("statistics/{direction}_bytes"))?,
            })
        };
        let index = number("ifindex")? as usize;
        lanes.push(Lane { interface, index, sent: count("tx")?, received: count("rx")? });
    }
    ensure!(
        !lanes.is_empty(),
        "this node has no tunnel: does warrend run here, and is this the node's network namespace?"
    );
    // warren-a2 before warren-a10.
    lanes.sort_by(|a, b| (a.interface.len(), &a.interface).cmp(&(b.interface.len(), &b.interface)));
    Ok(lanes)
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))
}
