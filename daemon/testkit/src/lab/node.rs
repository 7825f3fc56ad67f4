//! One node of a lab: its namespaces, its pods, and how it is doing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use warren_api::names;
use warren_api::status::Status;

use super::{Backend, Manifest, Plan, common_sysctls, plug};
use crate::netns::Netns;

/// A node. Its processes end when it is dropped.
#[derive(Debug)]
pub struct Node {
    /// Its number, from 1.
    pub number: usize,
    /// Its name in the registry: `node-1`.
    pub name: String,
    /// Its namespace: interfaces `eth0` (underlay) and `cni0` (pods).
    pub netns: Netns,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its underlay addresses, IPv4 before IPv6.
    pub ips: Vec<IpAddr>,
    /// Its pod CIDRs, IPv4 before IPv6.
    pub pod_cidrs: Vec<IpNet>,
    /// What carries its tunnels.
    pub backend: Backend,
    /// Where registry, state and logs of the lab are.
    pub(super) directory: PathBuf,
    pub(super) plan: Plan,
    pub(super) warrend: Mutex<Option<Child>>,
    /// A tunnel that warrend did not start.
    pub(super) tunnel: Mutex<Option<Child>>,
}

/// A pod: a namespace with an `eth0` on its node's bridge.
#[derive(Debug)]
pub struct Pod {
    /// `node-1/pod-1`.
    pub name: String,
    /// The name of its node.
    pub node: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses, IPv4 before IPv6.
    pub ips: Vec<IpAddr>,
}

impl Pod {
    /// Its IPv4 address, in a lab that has IPv4 pods.
    pub fn ipv4(&self) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv4()).expect("this lab's pods have no IPv4 address")
    }

    /// Its IPv6 address, in a lab that has IPv6 pods.
    pub fn ipv6(&self) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv6()).expect("this lab's pods have no IPv6 address")
    }
}

impl Node {
    /// Builds the node, its bridge and its pods.
    pub(super) fn new(
        plan: &Plan,
        number: usize,
        prefix: &str,
        underlay: &Netns,
        directory: &Path,
    ) -> Result<Self> {
        let name = format!("node-{number}");
        let netns = Netns::new(&format!("{prefix}{name}"))?;
        let mut node = Self {
            number,
            name,
            netns,
            pods: Vec::new(),
            ips: plan.node_ips(number),
            pod_cidrs: plan.pod_cidrs(number),
            backend: Backend::of(number)?,
            directory: directory.to_owned(),
            plan: plan.clone(),
            warrend: Mutex::new(None),
            tunnel: Mutex::new(None),
        };
        plug(&node.netns, underlay, &node.name, &node.ips, plan)?;
        node.netns.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        node.add_bridge_and_routes()?;
        for pod in 1..=plan.pods {
            node.add_pod(prefix, pod)?;
        }
        if plan.masquerade {
            node.masquerade()?;
        }
        Ok(node)
    }

    fn add_bridge_and_routes(&self) -> Result<()> {
        let mut batch =
            format!("link add cni0 mtu {} type bridge mcast_snooping 0\nlink set cni0 up\n", self.plan.mtu);
        for (gateway, cidr) in self.plan.gateways(self.number).into_iter().zip(&self.pod_cidrs) {
            let _ = writeln!(batch, "address add {gateway}/{} dev cni0", cidr.prefix_len());
        }
        for other in (1..=self.plan.nodes).filter(|other| *other != self.number) {
            for cidr in self.plan.pod_cidrs(other) {
                if !self.plan.has_clear_path(cidr.addr()) {
                    continue;
                }
                let _ = writeln!(batch, "route add {cidr} {} dev eth0", self.via(other, cidr));
            }
        }
        self.netns.ip(&batch)
    }

    /// The next hop to a pod CIDR of another node, of the same family if the underlay has it.
    fn via(&self, other: usize, cidr: IpNet) -> String {
        let ips = self.plan.node_ips(other);
        let same_family = ips.iter().find(|ip| ip.is_ipv4() == matches!(cidr, IpNet::V4(_)));
        match (same_family, &ips[..]) {
            (Some(ip), _) => format!("via {ip}"),
            (None, [ip, ..]) => format!("via inet6 {ip}"),
            (None, []) => unreachable!("every underlay has a family"),
        }
    }

    fn add_pod(&mut self, prefix: &str, pod: usize) -> Result<()> {
        let netns = Netns::new(&format!("{prefix}{}-pod-{pod}", self.name))?;
        common_sysctls(&netns)?;
        let mtu = self.plan.mtu;
        self.netns.ip(&format!(
            "link add veth{pod} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set veth{pod} master cni0 up",
            netns.name()
        ))?;
        let ips = self.plan.pod_ips(self.number, pod);
        let mut batch = "link set eth0 up\n".to_owned();
        for ((ip, cidr), gateway) in ips.iter().zip(&self.pod_cidrs).zip(self.plan.gateways(self.number)) {
            let _ = writeln!(batch, "address add {ip}/{} dev eth0", cidr.prefix_len());
            let _ = writeln!(batch, "route add default via {gateway}");
        }
        netns.ip(&batch)?;
        self.pods.push(Pod { name: format!("{}/pod-{pod}", self.name), node: self.name.clone(), netns, ips });
        Ok(())
    }

    fn masquerade(&self) -> Result<()> {
        let rules: String = self
            .pod_cidrs
            .iter()
            .zip(self.plan.cluster_cidrs())
            .map(|(cidr, cluster)| {
                let family = if matches!(cidr, IpNet::V4(_)) { "ip" } else { "ip6" };
                format!("{family} saddr {cidr} {family} daddr != {cluster} masquerade;\n")
            })
            .collect();
        self.netns.nft(&format!(
            "table inet cni {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat;\n{rules}}}\n}}\n"
        ))
    }

    /// This Node as it first stands in the registry.
    pub fn manifest(&self) -> Manifest {
        Manifest::new(&self.name, self.pod_cidrs.clone(), self.ips.clone())
    }

    /// Where this Node stands in the registry.
    pub fn manifest_path(&self) -> PathBuf {
        self.manifest().path(&self.directory.join("registry"))
    }

    /// `GET path` of warrend's HTTP server on this node's loopback: (status code, body).
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://{}{path}", names::HTTP);
        let get = || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(Duration::from_secs(2)))
                .http_status_as_error(false)
                .build()
                .into();
            let mut response = agent.get(&url).call()?;
            anyhow::Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
        };
        self.netns.run(get)?.with_context(|| format!("GET {url} on {}", self.name))
    }

    /// What warrend says of itself.
    pub fn status(&self) -> Result<Status> {
        let (code, body) = self.http("/status")?;
        ensure!(code == 200, "GET /status on {}: HTTP {code}: {body}", self.name);
        serde_json::from_str(&body).with_context(|| format!("/status of {}: {body}", self.name))
    }

    /// Succeeds when warrend says it is ready; otherwise the error tells what it waits for.
    pub fn ready(&self) -> Result<()> {
        match self.http("/readyz")? {
            (200, _) => Ok(()),
            (code, body) => bail!("{} is not ready: HTTP {code}: {}", self.name, body.trim()),
        }
    }

    /// The metrics, in Prometheus's text format.
    pub fn metrics(&self) -> Result<String> {
        let (code, body) = self.http("/metrics")?;
        ensure!(code == 200, "GET /metrics on {}: HTTP {code}: {body}", self.name);
        Ok(body)
    }

    /// The value of one of warrend's metrics, which is a whole number.
    pub fn metric(&self, series: &str) -> Result<u64> {
        let metrics = self.metrics()?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.with_context(|| format!("no {series} in {metrics}"))
    }

    /// What warrend, and the tunnel it started, have logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The file of [`Node::log`].
    pub fn log_path(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// The reverse-path filters (`net.ipv4.conf.*.rp_filter`) by interface, with `all` and `default`.
    pub fn reverse_path_filters(&self) -> Result<BTreeMap<String, String>> {
        let read = || {
            let mut filters = BTreeMap::new();
            for entry in fs::read_dir("/proc/sys/net/ipv4/conf")? {
                let entry = entry?;
                let filter = fs::read_to_string(entry.path().join("rp_filter"))?.trim().to_owned();
                filters.insert(entry.file_name().to_string_lossy().into_owned(), filter);
            }
            anyhow::Ok(filters)
        };
        self.netns.run(read)?.with_context(|| format!("reading the filters of {}", self.name))
    }

    /// By what flows over several interfaces are spread (`fib_multipath_hash_policy`), IPv4 and IPv6.
    pub fn hash_policies(&self) -> Result<[String; 2]> {
        let read = |family| {
            let file = format!("/proc/sys/net/{family}/fib_multipath_hash_policy");
            anyhow::Ok(fs::read_to_string(file)?.trim().to_owned())
        };
        self.netns.run(|| anyhow::Ok([read("ipv4")?, read("ipv6")?]))?
    }

    /// The directory of warrend's keys.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join(format!("{}.state", self.name))
    }
}
