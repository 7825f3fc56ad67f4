//! By what the kernel spreads flows over several interfaces (`fib_multipath_hash_policy`,
//! Documentation/networking/ip-sysctl.rst): by addresses alone, those between two pods share one.

use std::collections::BTreeSet;
use std::{fs, io};

/// The policy that is the kernel's default, and the one that looks at ports, too. Who chose another has thought about it.
const BY_ADDRESSES: &str = "0";
const BY_PORTS: &str = "1";

/// Whether flows of both families are spread by their ports as well.
pub fn by_ports() -> bool {
    families(BY_ADDRESSES).is_ok_and(|families| families.is_empty())
}

/// The families whose flows are spread by addresses alone.
pub fn families_by_addresses() -> io::Result<BTreeSet<String>> {
    families(BY_ADDRESSES)
}

/// Those whose flows are spread by addresses and ports.
pub fn families_by_ports() -> io::Result<BTreeSet<String>> {
    families(BY_PORTS)
}

/// Has flows of a family spread by addresses and ports, or by addresses alone.
pub fn set(family: &str, by_ports: bool) -> io::Result<()> {
    fs::write(path(family), if by_ports { BY_PORTS } else { BY_ADDRESSES })
}

/// The families of a policy. A kernel without a family lacks its file.
fn families(policy: &str) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for family in ["ipv4", "ipv6"] {
        match fs::read_to_string(path(family)) {
            Ok(text) if text.trim() == policy => drop(found.insert(family.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn path(family: &str) -> String {
    format!("/proc/sys/net/{family}/fib_multipath_hash_policy")
}
