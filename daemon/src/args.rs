//! The command line. Only this module reads the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use warren_api::names;
use warren_api::status::Enforcement;
use warren_core::{Numbers, Priorities};

/// Encrypts all traffic between the pods of different nodes, or drops it.
#[derive(Debug, Parser)]
#[command(name = "warrend", version, about)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to log: a level, or directives of the `tracing` filter syntax.
    #[arg(long, global = true, default_value = "info", env = "WARREN_LOG")]
    pub log: String,
    /// What is Warren's of what others use, too.
    #[command(flatten)]
    pub shares: Shares,
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Run the daemon of one node, until SIGTERM. Its end leaves tunnels, routes and guard in place.
    #[command(flatten)]
    pub run: Option<Run>,
}

/// What to do instead of running the daemon.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take everything of Warren's off this node: tunnel, routes, rules, guard, and what it changed of the node's own
    /// settings. Keys stay.
    Teardown {
        /// The directory of this node's keys, as the daemon was told: there it noted what the settings were.
        #[arg(long, default_value = names::STATE_DIR)]
        state_dir: PathBuf,
    },
}

/// What the daemon of one node needs to know.
#[derive(Debug, Clone, clap::Args)]
pub struct Run {
    /// The name of this node in the registry.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Where nodes publish and watch announcements: `kubernetes`, the API server of the cluster this runs in;
    /// `kubernetes:PATH`, that of a kubeconfig; `dir:PATH`, a directory of Node manifests in YAML.
    #[arg(long)]
    pub registry: Registry,
    /// A directory of files named enforcement, cluster-cidrs, node-cidrs, service-cidrs, api-servers, encrypt-host and
    /// withdraw, such as a mounted ConfigMap. What a file says outranks the option; it is read again at each look.
    #[arg(long, value_name = "DIR")]
    pub settings: Option<PathBuf>,
    /// The directory of this node's keys.
    #[arg(long, default_value = names::STATE_DIR)]
    pub state_dir: PathBuf,
    /// What carries the tunnels.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// How many parallel tunnels to serve for each peer, on the listen port and those after it: a number, or `auto`
    /// by the number of processors. A pair uses the smaller of the two counts.
    #[arg(long, default_value = "1", value_parser = lanes)]
    pub lanes: u8,
    /// The userspace tunnel's program; by default the `warren-tunnel` beside this program.
    #[arg(long)]
    pub tunnel_program: Option<PathBuf>,
    /// Somebody else starts and restarts the tunnel's program: another container. Only its socket is used.
    #[arg(long, conflicts_with = "tunnel_program")]
    pub external_tunnel: bool,
    /// The UDP port of the tunnel.
    #[arg(long, default_value_t = names::LISTEN_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub listen_port: u16,
    /// Where to serve probes, metrics and status. They are for this node alone: keep it on loopback.
    #[arg(long, default_value = names::HTTP)]
    pub http: SocketAddr,
    /// Where to serve the metrics alone, besides: for a Prometheus that is not on this node.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// `strict` drops what is not encrypted; `permissive` counts it and lets it pass.
    #[arg(long, default_value = "strict", value_parser = enforcement)]
    pub enforcement: Enforcement,
    /// The networks of all pods: addresses in them that belong to no node are guarded, too.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidrs: Vec<IpNet>,
    /// The networks of all nodes: endpoints outside them are not believed.
    #[arg(long, value_delimiter = ',')]
    pub node_cidrs: Vec<IpNet>,
    /// The networks of the cluster's services: no node is believed to have one of these addresses.
    #[arg(long, value_delimiter = ',')]
    pub service_cidrs: Vec<IpNet>,
    /// The API server's addresses where they are no node's of the control plane, as with a managed one: no pod is
    /// believed to have one of them.
    #[arg(long, value_delimiter = ',')]
    pub api_servers: Vec<IpAddr>,
    /// The TCP port of the API server on nodes of the control plane.
    #[arg(long, default_value_t = names::API_SERVER_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub api_server_port: u16,
    /// Encrypt what nodes' own programs send each other, too, towards each node that does the same. The API server,
    /// and nodes labelled `warren.internal/encrypt-host=false`, are exempt.
    #[arg(long)]
    pub encrypt_host: bool,
    /// Leave the mesh without losing a packet, once all nodes are permissive: send nothing through tunnels,
    /// take the announcement back, and remove all of Warren's once nobody else announces.
    #[arg(long)]
    pub withdraw: bool,
    /// How often to look without being told of a change, for example `5s` or `500ms`; by default every 5 s, and more
    /// rarely, up to once a minute, where there are thousands of nodes.
    #[arg(long, value_parser = duration)]
    pub resync: Option<Duration>,
}

/// What is Warren's of what others on the node use, too. When the daemon starts on a node where somebody else has it
/// already, it says so and does nothing.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Shares {
    /// The first of three consecutive routing tables.
    #[arg(long, global = true, default_value_t = names::PODS_TABLE, value_parser = clap::value_parser!(u32).range(256..4_294_967_293))]
    pub table: u32,
    /// The first of four consecutive priorities of routing rules.
    #[arg(long, global = true, default_value_t = names::PODS_RULE, value_parser = clap::value_parser!(u32).range(1..32_763))]
    pub rule_priority: u32,
    /// The mark of the tunnels' own packets: one bit, such as 0x1000.
    #[arg(long, global = true, default_value = "0x1000", value_parser = mark)]
    pub mark: u32,
    /// The priorities of the nftables chains at prerouting (from -399 to -201), postrouting (above 100) and forward.
    #[arg(long, global = true, value_name = "IN,OUT,FORWARD", default_value = "-300,300,-150", value_parser = priorities)]
    #[arg(allow_hyphen_values = true)]
    pub nft_priorities: Priorities,
}

impl Shares {
    /// These, with the documented ports.
    pub fn numbers(self) -> Numbers {
        let Self { table, rule_priority: rule, mark, nft_priorities: chains } = self;
        Numbers { table, rule, mark, chains, ..Numbers::default() }
    }
}

/// Where nodes publish and watch announcements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registry {
    /// A directory of Node manifests.
    Dir(PathBuf),
    /// The Nodes of a Kubernetes cluster: the one this runs in, or that of a kubeconfig.
    Kubernetes(Option<PathBuf>),
}

impl std::str::FromStr for Registry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes(None)),
            Some(("kubernetes", path)) if !path.is_empty() => Ok(Self::Kubernetes(Some(path.into()))),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(format!("{text:?} is no registry: write kubernetes, kubernetes:PATH or dir:PATH")),
        }
    }
}

/// What carries the tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// WireGuard in the kernel where it can be had, else the program.
    Auto,
    /// WireGuard in the kernel.
    Kernel,
    /// The program `warren-tunnel`.
    Userspace,
}

/// A number of lanes, or `auto`.
fn lanes(text: &str) -> Result<u8, String> {
    if text == "auto" {
        return Ok(lanes_for(std::thread::available_parallelism().map_or(1, usize::from)));
    }
    let number = text.parse().ok().filter(|lanes| (1..=names::MAX_LANES).contains(lanes));
    number.ok_or_else(|| format!("write auto, or a number from 1 to {}", names::MAX_LANES))
}

/// How many lanes are good on so many processors: one for every two, of which sending and receiving take one each; no
/// more than have been measured.
fn lanes_for(processors: usize) -> u8 {
    const MOST: usize = 8;
    (processors / 2).clamp(1, MOST) as u8
}

/// Whether each lane has a port, the listen port and those after it, as peers ask for: an announcement with less is
/// refused.
pub fn check_ports(listen_port: u16, lanes: u8) -> Result<(), String> {
    let most = u16::MAX - u16::from(lanes);
    if listen_port <= most {
        return Ok(());
    }
    Err(format!(
        "--listen-port {listen_port} leaves too few ports for --lanes {lanes}, each of which takes the next one: it can be \
         {most} at most"
    ))
}

/// `strict` or `permissive`.
pub fn enforcement(text: &str) -> Result<Enforcement, String> {
    match text {
        "strict" => Ok(Enforcement::Strict),
        "permissive" => Ok(Enforcement::Permissive),
        _ => Err("write strict or permissive".to_owned()),
    }
}

/// An address and a port. An IPv6 address may lack its brackets, as where a manifest puts `$(HOST_IP):9587`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let bare = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    text.parse()
        .ok()
        .or_else(bare)
        .ok_or_else(|| "write an address and a port, such as 192.0.2.1:9587".to_owned())
}

/// A single bit, in hexadecimal or decimal.
fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number.filter(|mark| mark.is_power_of_two()).ok_or_else(|| "write one bit, such as 0x1000".to_owned())
}

/// Three priorities that keep the guard's chains where they work: ahead of connection tracking, behind source NAT.
fn priorities(text: &str) -> Result<Priorities, String> {
    let numbers: Vec<i32> = text.split(',').filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [inbound, outbound, mss] if (-399..=-201).contains(&inbound) && outbound > 100 => {
            Ok(Priorities { inbound, outbound, mss })
        }
        _ => Err("write three numbers, from -399 to -201, above 100, and any".to_owned()),
    }
}

/// A duration such as `5s` or `500ms`, at least 100 ms: anything shorter would be a busy loop.
fn duration(text: &str) -> Result<Duration, String> {
    let number = |digits: &str| digits.parse::<u64>().ok();
    let parsed = match text.strip_suffix("ms") {
        Some(digits) => number(digits).map(Duration::from_millis),
        None => text.strip_suffix('s').and_then(number).map(Duration::from_secs),
    };
    match parsed {
        Some(duration) if duration >= Duration::from_millis(100) => Ok(duration),
        Some(_) => Err("at least 100ms".to_owned()),
        None => Err("write a number with a unit, such as 5s or 500ms".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn it_runs_or_tears_down() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let run = parse("warrend --node a --registry dir:/r").unwrap();
        assert_eq!(run.run.unwrap().registry, Registry::Dir("/r".into()));
        let run = parse("warrend --node a --registry kubernetes").unwrap();
        assert_eq!(run.run.unwrap().registry, Registry::Kubernetes(None));
        let run = parse("warrend --node a --registry kubernetes:/k").unwrap();
        assert_eq!(run.run.unwrap().registry, Registry::Kubernetes(Some("/k".into())));
        let teardown = parse("warrend teardown").unwrap();
        assert!(matches!(teardown.command, Some(Command::Teardown { .. })) && teardown.run.is_none());
        for bad in [
            "warrend",
            "warrend --node a",
            "warrend --node a --registry /r",
            "warrend --registry dir:",
            "warrend --node a --registry kubernetes:",
            "warrend --node a --registry dir:/r --external-tunnel --tunnel-program /p",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shared_can_be_changed_where_it_works() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let run = parse("warrend --node a --registry dir:/r").unwrap();
        assert_eq!(run.shares.numbers(), Numbers::default());
        let line = "--table 7000 --rule-priority 100 --mark 0x80000 --nft-priorities -310,400,0";
        let changed = parse(&format!("warrend teardown {line}")).unwrap();
        let chains = Priorities { inbound: -310, outbound: 400, mss: 0 };
        let numbers = Numbers { table: 7000, rule: 100, mark: 0x80000, chains, ..Numbers::default() };
        assert_eq!(changed.shares.numbers(), numbers);
        for bad in ["--table 254", "--rule-priority 0", "--rule-priority 32766", "--mark 0x3000", "--mark 0"]
        {
            assert!(parse(&format!("warrend teardown {bad}")).is_err(), "{bad}");
        }
        for bad in ["-100,300,-150", "-300,100,-150", "-300,300", "-300,300,-150,0", "a,b,c"] {
            assert!(priorities(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_may_lack_brackets() {
        for text in ["192.0.2.1:9587", "[fd77::1]:9587", "fd77::1:9587"] {
            assert_eq!(address(text).unwrap().port(), 9587, "{text}");
        }
        assert_eq!(address("fd77::1:9587").unwrap(), "[fd77::1]:9587".parse().unwrap());
        for bad in ["192.0.2.1", "9587", ":9587", "a:b", "192.0.2.1:70000"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lanes_are_few() {
        assert_eq!((lanes("1"), lanes("16")), (Ok(1), Ok(16)));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(lanes("auto"), Ok(lanes_for(processors)));
        for bad in ["0", "17", "-1", "", "many"] {
            assert!(lanes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lanes_follow_the_processors() {
        let expected = [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (16, 8), (18, 8), (64, 8), (1024, 8)];
        for (processors, lanes) in expected {
            assert_eq!(lanes_for(processors), lanes, "{processors} processors");
        }
    }

    #[test]
    fn each_lane_has_a_port() {
        for (port, lanes) in [(1, 1), (65_534, 1), (65_519, 16), (51_820, 8)] {
            assert_eq!(check_ports(port, lanes), Ok(()), "{port}, {lanes}");
        }
        for (port, lanes) in [(65_535, 1), (65_520, 16)] {
            assert!(check_ports(port, lanes).unwrap_err().contains("--listen-port"), "{port}, {lanes}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["5", "s", "0s", "-1s", "1h", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
