//! The programs that scenarios call, and the Debian packages that bring them.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// (program, Debian package) of every program the kit or a scenario may call.
const PACKAGES: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("iptables-legacy", "iptables"),
    ("iptables-nft", "iptables"),
    ("mount", "mount"),
    ("ncat", "ncat"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("ping6", "iputils-ping"),
    ("setpriv", "util-linux"),
    ("sleep", "coreutils"),
    ("ss", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("timeout", "coreutils"),
    ("unshare", "util-linux"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// Fails unless all `programs` are installed, naming the packages that are missing.
pub fn requires(programs: &[&str]) -> Result<()> {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing
        .iter()
        .map(|program| {
            PACKAGES.iter().find(|(name, _)| name == program).map_or(*program, |(_, package)| package)
        })
        .collect();
    packages.sort_unstable();
    packages.dedup();
    bail!("not installed: {}; as root: apt-get install {}", missing.join(", "), packages.join(" "))
}

/// Where a program is, searched as the shell does and then where Debian keeps administrators' programs,
/// which are not on everybody's PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
