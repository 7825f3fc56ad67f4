//! Names and numbers on a node that several programs, and the operator, must agree on.

/// All tunnel interfaces begin with this; the guard trusts these interfaces and no other.
pub const INTERFACE_PREFIX: &str = "warren-";

/// The interface of one epoch and lane: `warren-a0` is side a (even epochs), lane 0.
pub fn interface(epoch: u64, lane: u8) -> String {
    let side = if epoch.is_multiple_of(2) { 'a' } else { 'b' };
    format!("{INTERFACE_PREFIX}{side}{lane}")
}

/// Whether an interface has the name of one epoch and lane.
pub fn is_tunnel(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(INTERFACE_PREFIX) else { return false };
    let lane = rest.strip_prefix(['a', 'b']).and_then(|lane| lane.parse().ok());
    lane.is_some_and(|lane: u8| lane < MAX_LANES && lane.to_string() == rest[1..])
}

/// The alias (`ip link show`) of WireGuard interfaces that Warren made, by which they are told from others'.
pub const ALIAS: &str = "warren";

/// The nftables table (family inet) of the guard.
pub const GUARD_TABLE: &str = "warren";

/// The routing table that leads to the pods of other nodes. Like the numbers below it is above 255, which
/// distributions reserve, and below 10000, where wg-quick and cloud agents begin.
pub const PODS_TABLE: u32 = 5180;
/// The routing table that leads to the addresses of other nodes, for packets from local pods only.
pub const NODES_TABLE: u32 = 5181;
/// The routing table that leads to the addresses of other nodes, for what this node's own programs send
/// (`--encrypt-host`).
pub const HOSTS_TABLE: u32 = 5182;
/// The priority of the rule that consults [`PODS_TABLE`]: after `local` (0), ahead of `main` (32766) and of
/// what wg-quick and cloud agents add just below it.
pub const PODS_RULE: u32 = 5180;
/// The priority of the rule `from` local pods that consults [`NODES_TABLE`].
pub const NODES_RULE: u32 = 5181;
/// The priority of the rules that lead to the API server past [`HOSTS_TABLE`], so that a node whose tunnels are all
/// wrong can be mended.
pub const EXEMPT_RULE: u32 = 5182;
/// The priority of the rule that consults [`HOSTS_TABLE`].
pub const HOSTS_RULE: u32 = 5183;
/// The mark of the tunnels' own packets under `--encrypt-host`: one bit that neither kube-proxy (0x4000, 0x8000), the
/// CNI plugin portmap (0x2000), AWS's (0x80), Calico (0xffff0000), Weave Net nor Tailscale use. Source: the registry
/// of marks, <https://github.com/fwmark/registry>, where only Cilium claims it, with all bits but those of the first
/// two.
pub const MARK: u32 = 0x1000;
/// The kernel's main routing table (`RT_TABLE_MAIN`, linux/rtnetlink.h).
pub const MAIN_TABLE: u32 = 254;
/// The `protocol` that marks routes, rules and addresses as Warren's (`rtnetlink(7)`: values above
/// RTPROT_STATIC are the user's; 0 to 4 are the kernel's; this one is in no `rt_protos` of a distribution).
pub const ROUTE_PROTOCOL: u8 = 157;
/// The metric of the `unreachable` routes that stand beside the tunnel's routes, the worst there is below
/// the kernel's own IPv6 reject routes (4294967295): any real route wins, and without one packets drop.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;
/// The metric of the routes through the tunnel.
pub const TUNNEL_METRIC: u32 = 1024;

/// The most lanes there are between two nodes.
pub const MAX_LANES: u8 = 16;

/// The default UDP port, WireGuard's customary one.
pub const LISTEN_PORT: u16 = 51820;
/// The port on which the API server of a node of the control plane listens, kubeadm's default.
pub const API_SERVER_PORT: u16 = 6443;
/// The default address of the daemon's HTTP server: probes, metrics, status.
pub const HTTP: &str = "127.0.0.1:9586";
/// The default directory of a node's keys.
pub const STATE_DIR: &str = "/var/lib/warren";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_told_by_their_names() {
        assert!(
            [0, 1].into_iter().all(|epoch| (0..MAX_LANES).all(|lane| is_tunnel(&interface(epoch, lane))))
        );
        for other in
            ["warren-", "warren-a", "warren-c0", "warren-a00", "warren-a16", "warren-a+1", "eth0", "a0"]
        {
            assert!(!is_tunnel(other), "{other}");
        }
    }
}
