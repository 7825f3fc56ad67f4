//! Numbers that Warren shares with whatever else configures a node.

use warren_api::names;

/// Which tables, priorities, marks and ports are Warren's on this node. The default is what is documented with
/// [`names`]; each can be changed where somebody else has it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// The first of three routing tables: to pods, to nodes for pods, to nodes for their own programs.
    pub table: u32,
    /// The first of four priorities of rules: pods, nodes for pods, exemptions, nodes for their own programs.
    pub rule: u32,
    /// The mark of the tunnels' own packets, one bit.
    pub mark: u32,
    /// The priorities of the guard's chains.
    pub chains: Priorities,
    /// The UDP port of the first lane; the others follow.
    pub listen_port: u16,
    /// The API server's TCP port.
    pub api_server_port: u16,
}

/// The priorities of the guard's nftables chains among others at the same hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priorities {
    /// At prerouting, ahead of connection tracking (-200) and NAT.
    pub inbound: i32,
    /// At postrouting, behind source NAT (100).
    pub outbound: i32,
    /// At forward, where segments are made to fit.
    pub mss: i32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            table: names::PODS_TABLE,
            rule: names::PODS_RULE,
            mark: names::MARK,
            chains: Priorities { inbound: -300, outbound: 300, mss: -150 },
            listen_port: names::LISTEN_PORT,
            api_server_port: names::API_SERVER_PORT,
        }
    }
}

impl Numbers {
    /// The table that leads to the pods of other nodes.
    pub fn pods_table(&self) -> u32 {
        self.table
    }

    /// The table that leads to the addresses of other nodes, for packets from local pods.
    pub fn nodes_table(&self) -> u32 {
        self.table + 1
    }

    /// The table that leads to the addresses of other nodes, for what this node's own programs send.
    pub fn hosts_table(&self) -> u32 {
        self.table + 2
    }

    /// All of them.
    pub fn tables(&self) -> [u32; 3] {
        [self.pods_table(), self.nodes_table(), self.hosts_table()]
    }

    /// The priority of the rules that consult [`Numbers::pods_table`].
    pub fn pods_rule(&self) -> u32 {
        self.rule
    }

    /// The priority of the rules from local pods that consult [`Numbers::nodes_table`].
    pub fn nodes_rule(&self) -> u32 {
        self.rule + 1
    }

    /// The priority of the rules that lead past [`Numbers::hosts_table`].
    pub fn exempt_rule(&self) -> u32 {
        self.rule + 2
    }

    /// The priority of the rules that consult [`Numbers::hosts_table`].
    pub fn hosts_rule(&self) -> u32 {
        self.rule + 3
    }

    /// The ports on which tunnels may listen.
    pub fn listen_ports(&self) -> (u16, u16) {
        (self.listen_port, self.listen_port.saturating_add(u16::from(names::MAX_LANES) - 1))
    }
}
