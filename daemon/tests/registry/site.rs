//! An API server with a few Nodes, and a registry that looks at it, in one namespace.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::sync::Notify;
use tokio::time::sleep;
use warren_api::annotations::ANNOUNCEMENT;
use warren_core::{NodeRecord, Record};
use warren_testkit::apiserver::fake::{ApiServer, NodeSpec, Options, Verb};
use warren_testkit::netns::Netns;
use warrend::registry::kubernetes::KubernetesRegistry;

/// The own Node.
pub const OWN: &str = "node-00001";
/// Another.
pub const OTHER: &str = "node-00002";

/// How long anything may take that waits for a few attempts after failures, the longest up to 20 s apart.
pub const SOON: Duration = Duration::from_secs(45);

/// A watch is given up after this much silence; the server sends bookmarks ten times as often.
pub const SILENCE: Duration = Duration::from_secs(3);

pub struct Site<'a> {
    pub netns: &'a Netns,
    pub server: ApiServer,
    pub registry: KubernetesRegistry,
}

/// All Nodes by their names.
pub type Known = BTreeMap<String, Arc<NodeRecord>>;

/// Runs a scenario beside a server with `nodes` Nodes, all listed and watched.
pub fn at_site(nodes: u16, scenario: impl AsyncFnOnce(&mut Site) -> Result<()> + Send) -> Result<()> {
    let specs: Vec<NodeSpec> = (1..=nodes).map(NodeSpec::numbered).collect();
    at_site_of(&specs, async |site: &mut Site| {
        site.until("the list", |site| {
            let known = site.known()?.len();
            ensure!(known == usize::from(nodes), "{known} of {nodes} are known");
            site.is_watching()
        })
        .await?;
        scenario(site).await
    })
}

/// Runs a scenario beside a server with these Nodes.
pub fn at_site_of(
    nodes: &[NodeSpec],
    scenario: impl AsyncFnOnce(&mut Site) -> Result<()> + Send,
) -> Result<()> {
    at_site_with(nodes, ApiServer::kubeconfig, scenario)
}

/// [`at_site_of`], with another kubeconfig.
pub fn at_site_with(
    nodes: &[NodeSpec],
    configure: impl FnOnce(&ApiServer) -> String,
    scenario: impl AsyncFnOnce(&mut Site) -> Result<()> + Send,
) -> Result<()> {
    let netns = Netns::new("registry")?;
    let server = start(&netns, "127.0.0.1:0".parse()?)?;
    server.add_nodes(nodes)?;
    let kubeconfig = tempfile::NamedTempFile::new()?;
    std::fs::write(kubeconfig.path(), configure(&server))?;
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let changed = Arc::new(Notify::new());
            let open = KubernetesRegistry::open(Some(kubeconfig.path()), OWN.to_owned(), changed, SILENCE);
            let registry = open.await?;
            scenario(&mut Site { netns: &netns, server, registry }).await
        })
    })?
}

/// Without TLS: a server that comes back with other data shall not be refused for its other certificate.
pub fn start(netns: &Netns, address: SocketAddr) -> Result<ApiServer> {
    let bookmark_interval = SILENCE / 10;
    ApiServer::start(netns, address, Options { tls: false, bookmark_interval, ..Options::default() })
}

impl Site<'_> {
    /// What the registry knows.
    pub fn known(&self) -> Result<Known> {
        let name = |record: Record| match record {
            Record::Node(node) => Ok((node.name.clone(), node)),
            Record::Unreadable { name, reason } => Err(anyhow!("{name}: {reason}")),
        };
        self.registry.read()?.into_iter().map(name).collect()
    }

    /// Fails unless exactly one watch is open.
    pub fn is_watching(&self) -> Result<()> {
        let watches = self.server.watches();
        ensure!(watches == 1, "{watches} watches are open");
        Ok(())
    }

    /// Waits for a condition, letting the registry work.
    pub async fn until(&self, what: &str, check: impl Fn(&Self) -> Result<()>) -> Result<Duration> {
        self.until_within(SOON, what, check).await
    }

    /// [`Site::until`], with another limit.
    pub async fn until_within(
        &self,
        limit: Duration,
        what: &str,
        check: impl Fn(&Self) -> Result<()>,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            match check(self) {
                Ok(()) => return Ok(start.elapsed()),
                Err(error) if start.elapsed() > limit => {
                    return Err(error.context(format!("{what} did not come within {limit:?}")));
                }
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Has a Node announce something.
    pub fn announce(&self, name: &str, text: &str) -> Result<()> {
        self.server.update_annotations(name, &[(ANNOUNCEMENT, Some(text))])
    }

    /// Waits until a Node is known to announce something of which the parser complains so.
    pub async fn until_announces(&self, name: &str, complaint: &str) -> Result<Duration> {
        self.until(&format!("the announcement of {name}"), |site| {
            let known = site.known()?;
            let node = known.get(name).with_context(|| format!("{name} is not known"))?;
            let said = format!("{:?}", node.announcement);
            ensure!(said.contains(complaint), "{name} announces {said}");
            Ok(())
        })
        .await
    }

    /// How often a verb was used.
    pub fn asked(&self, verb: Verb) -> u64 {
        self.server.count(verb).requests
    }
}

/// An announcement that names itself in the complaint about it.
pub fn version(number: u32) -> String {
    format!(r#"{{"version": {number}}}"#)
}
