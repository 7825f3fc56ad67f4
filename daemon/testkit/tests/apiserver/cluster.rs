//! A fake API server with some Nodes, and clients of it.

use std::future::Future;

use anyhow::{Context, Result};
use hyper::Request;
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use warren_testkit::apiserver::fake::{ApiServer, NodeSpec, Options};
use warren_testkit::netns::Netns;

/// All that a scenario needs.
pub struct Cluster {
    pub api: ApiServer,
    pub netns: Netns,
}

impl Cluster {
    /// A server with `node-00001` to `node-N`.
    pub fn new(nodes: u16) -> Result<Self> {
        Self::with(nodes, Options::default())
    }

    pub fn with(nodes: u16, options: Options) -> Result<Self> {
        let netns = Netns::new("control")?;
        let api = ApiServer::start(&netns, "127.0.0.1:0".parse()?, options)?;
        let specs: Vec<NodeSpec> = (1..=nodes).map(NodeSpec::numbered).collect();
        api.add_nodes(&specs)?;
        Ok(Self { api, netns })
    }

    /// Runs a client inside the namespace to its end.
    pub fn client<T: Send, F>(&self, scenario: impl FnOnce(Client) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let kubeconfig = Kubeconfig::from_yaml(&self.api.kubeconfig())?;
        self.netns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                // Refusals are to be seen, not to be tried again 15 times.
                config.default_retry = false;
                scenario(Client::try_from(config)?).await
            })
        })?
    }

    /// [`Self::client`] of Nodes.
    pub fn nodes<T: Send, F>(&self, scenario: impl FnOnce(Api<Node>) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.client(|client| scenario(Api::all(client)))
    }
}

/// GET, as JSON.
pub async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    client.request(Request::get(path).body(Vec::new()).expect("the path is one")).await
}

/// The HTTP status that a request was refused with.
pub fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Result<kube::core::Status> {
    match result {
        Err(kube::Error::Api(status)) => Ok(*status),
        other => Err(anyhow::anyhow!("expected a refusal, got {other:?}")),
    }
}

/// An annotation in an answer.
pub fn annotation<'a>(object: &'a impl kube::ResourceExt, key: &str) -> Result<&'a str> {
    object.annotations().get(key).map(String::as_str).with_context(|| format!("no annotation {key}"))
}
