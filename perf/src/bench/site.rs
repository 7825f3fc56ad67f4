//! Two machines on one link with the same program, configured alike by `wg`.
//!
//! ```text
//!   bench-left  eth0 ─────────── veth ─────────── eth0  bench-right
//!               192.0.2.1/24, 2001:db8::1/64       …2
//!               wg0   10.9.0.1/24, fd09::1/64      …2
//!               vx0   10.8.0.1/24 (VXLAN in wg0)   …2
//! ```

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use warren_testkit::netns::Netns;
use warren_testkit::traffic::ping::Ping;
use warren_testkit::{process, wait};

use super::programs::{INTERFACE, Program};

/// What a tunnel takes of each packet: outer IPv6 (40), UDP (8), WireGuard (32). As `wg-quick` has it, whatever the
/// outer family.
const OVERHEAD: u32 = 80;

/// What VXLAN takes of each packet over IPv4 (RFC 7348 section 5).
const VXLAN_OVERHEAD: u32 = 50;

/// The UDP port of both ends.
const PORT: u16 = 51820;

/// How long the first packet may take: a handshake that is lost is tried again after 5 s.
const PATIENCE: Duration = Duration::from_secs(12);

/// The shape of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// MTU of the link, in bytes.
    pub mtu: u32,
    /// Whether addresses are IPv6, inside and outside.
    pub ipv6: bool,
    /// Peers that are configured besides the one that is there.
    pub idle_peers: u16,
    /// Whether the traffic goes through VXLAN in the tunnel.
    pub vxlan: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self { mtu: 1500, ipv6: false, idle_peers: 0, vxlan: false }
    }
}

/// Key pairs of both ends, made by `wg`; the same for all sites of a run.
pub struct Keys {
    ends: [KeyPair; 2],
}

struct KeyPair {
    private: String,
    public: String,
}

impl Keys {
    /// Makes them.
    pub fn new() -> Result<Self> {
        let pair = || {
            let private = process::output(Command::new("wg").arg("genkey"))?;
            let public = process::output_with_input(Command::new("wg").arg("pubkey"), &private)?;
            anyhow::Ok(KeyPair { private: private.trim().into(), public: public.trim().into() })
        };
        Ok(Self { ends: [pair()?, pair()?] })
    }
}

/// The two machines. Nothing of them is left when this is dropped.
pub struct Site {
    /// Where traffic comes from.
    pub left: Netns,
    /// Where it goes to.
    pub right: Netns,
    /// What carries it.
    pub program: Program,
    network: Network,
}

impl Site {
    /// Builds it and returns once a packet went through it and back.
    pub fn new(program: Program, path: &Path, network: &Network, keys: &Keys) -> Result<Self> {
        let [left, right] = [Netns::new("bench-left")?, Netns::new("bench-right")?];
        left.ip("link add eth0 type veth peer name eth0 netns bench-right")?;
        let site = Self { left, right, program, network: *network };
        for (at, netns) in [&site.left, &site.right].into_iter().enumerate() {
            let number = at + 1;
            netns.ip(&format!(
                "address add 192.0.2.{number}/24 dev eth0\n\
                 address add 2001:db8::{number}/64 dev eth0 nodad\n\
                 link set eth0 mtu {} up",
                network.mtu
            ))?;
            if program != Program::Plain {
                program.start(path, netns)?;
                site.configure(netns, at, keys)?;
            }
            if network.vxlan {
                site.add_vxlan(netns, number)?;
            }
        }
        wait::until("the first packet through the tunnel", PATIENCE, || {
            Ping { count: 1, ..Ping::default() }.run(&site.left, site.target())?.complete()
        })?;
        Ok(site)
    }

    /// The address of the right end that traffic from the left one goes to.
    pub fn target(&self) -> IpAddr {
        self.address("2")
    }

    /// The address of the left end on the same path.
    pub fn source(&self) -> IpAddr {
        self.address("1")
    }

    fn address(&self, number: &str) -> IpAddr {
        let net = match (self.network.vxlan, self.program, self.network.ipv6) {
            (true, _, _) => "10.8.0.",
            (_, Program::Plain, false) => "192.0.2.",
            (_, Program::Plain, true) => "2001:db8::",
            (_, _, false) => "10.9.0.",
            (_, _, true) => "fd09::",
        };
        format!("{net}{number}").parse().expect("an address")
    }

    /// The pids of the program on both ends.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let Some(comm) = self.program.comm() else { return Ok(Vec::new()) };
        let pids = [self.left.pids_of(comm)?, self.right.pids_of(comm)?].concat();
        ensure!(pids.len() == 2, "{} of 2 processes of {comm} are there", pids.len());
        Ok(pids)
    }

    fn configure(&self, netns: &Netns, at: usize, keys: &Keys) -> Result<()> {
        let configuration = configuration(&keys.ends[at], &keys.ends[1 - at], 2 - at, &self.network);
        let mut wg = netns.command("wg");
        wg.args(["setconf", INTERFACE, "/dev/stdin"]);
        process::output_with_input(&mut wg, &configuration)
            .with_context(|| format!("configuring {} with wg", netns.name()))?;
        let number = at + 1;
        netns.ip(&format!(
            "address add 10.9.0.{number}/24 dev {INTERFACE}\n\
             address add fd09::{number}/64 dev {INTERFACE} nodad\n\
             link set {INTERFACE} mtu {} up",
            self.network.mtu - OVERHEAD
        ))
    }

    fn add_vxlan(&self, netns: &Netns, number: usize) -> Result<()> {
        let (net, device, mtu) = match self.program {
            Program::Plain => ("192.0.2", "eth0", self.network.mtu),
            _ => ("10.9.0", INTERFACE, self.network.mtu - OVERHEAD),
        };
        netns.ip(&format!(
            "link add vx0 type vxlan id 42 local {net}.{number} remote {net}.{} dstport 4789 dev {device}\n\
             address add 10.8.0.{number}/24 dev vx0\n\
             link set vx0 mtu {} up",
            3 - number,
            mtu - VXLAN_OVERHEAD
        ))
    }
}

/// What `wg setconf` reads: the end with the key pair `own` knows `other`, the machine `number`, and the idle ones.
fn configuration(own: &KeyPair, other: &KeyPair, number: usize, network: &Network) -> String {
    let endpoint = match network.ipv6 {
        false => format!("192.0.2.{number}:{PORT}"),
        true => format!("[2001:db8::{number}]:{PORT}"),
    };
    let mut text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
         [Peer]\nPublicKey = {}\nEndpoint = {endpoint}\nAllowedIPs = 10.9.0.{number}/32, fd09::{number}/128\n",
        own.private, other.public
    );
    for peer in 0..network.idle_peers {
        // 32 bytes that are nobody's: there is nobody to shake hands with.
        let key: [u8; 32] = std::array::from_fn(|at| if at < 2 { peer.to_be_bytes()[at] } else { 0x42 });
        text += &format!(
            "[Peer]\nPublicKey = {}\nEndpoint = 192.0.2.250:{PORT}\nAllowedIPs = 10.10.{}.{}/32, fd10::{peer:x}/128\n",
            BASE64.encode(key),
            peer / 256,
            peer % 256
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_peers_have_keys_and_addresses_of_their_own() {
        let pair = || KeyPair { private: "a".into(), public: "b".into() };
        let network = Network { idle_peers: 300, ..Network::default() };
        let text = configuration(&pair(), &pair(), 2, &network);
        for name in ["PublicKey", "AllowedIPs"] {
            let values: std::collections::BTreeSet<&str> =
                text.lines().filter(|line| line.starts_with(name)).collect();
            assert_eq!(values.len(), 301, "{name}");
        }
        assert!(text.contains("Endpoint = 192.0.2.2:51820\nAllowedIPs = 10.9.0.2/32, fd09::2/128"));
    }
}
