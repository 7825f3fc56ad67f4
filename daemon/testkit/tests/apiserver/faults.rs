//! Faults on demand: each is felt by a client while it stands, and no longer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::Request;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::time::timeout;
use warren_testkit::apiserver::fake::{Failure, Garbage, Options, Stall, Verb};

use crate::cluster::{Cluster, get, refused};
use crate::watching::next;

const NODE: &str = "node-00001";

/// Long enough that what has not come by then does not come.
const SILENCE: Duration = Duration::from_millis(300);

pub fn requests() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let latency = Duration::from_millis(150);
        api.set_latency(latency);
        let start = Instant::now();
        nodes.get(NODE).await?;
        ensure!(start.elapsed() >= latency);
        api.set_latency(Duration::ZERO);

        api.fail(Failure::status(503).of(Verb::Get).times(2));
        for _ in 0..2 {
            nodes.list(&ListParams::default()).await?;
            ensure!(refused(nodes.get(NODE).await)?.code == 503);
        }
        nodes.get(NODE).await?;

        api.fail(Failure::status(429).retry_after(7));
        let client = nodes.clone().into_client();
        let request = Request::get("/api/v1/nodes/node-00001").body(Vec::new())?.map(Into::into);
        let answer = client.send(request).await?;
        ensure!(answer.status() == 429 && answer.headers()["retry-after"] == "7", "{answer:?}");
        api.lift_failures();
        nodes.get(NODE).await?;

        api.set_token(Some("another"));
        let status = refused(nodes.get(NODE).await)?;
        ensure!((status.code, status.reason.as_str()) == (401, "Unauthorized"), "{status:?}");
        Ok(())
    })?;
    // The kubeconfig has the new one.
    cluster.nodes(|nodes| async move { Ok(nodes.get(NODE).await.map(drop)?) })
}

pub fn stalls() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let start = api.resource_version().to_string();
        let mut events = nodes.watch_metadata(&WatchParams::default(), &start).await?.boxed();
        api.touch_status(NODE)?;
        next(&mut events).await?;
        api.stall(Stall::Watches);
        api.touch_status(NODE)?;
        nodes.get(NODE).await?;
        ensure!(timeout(SILENCE, events.next()).await.is_err(), "a stalled watch said something");
        api.resume();
        ensure!(matches!(next(&mut events).await?, WatchEvent::Modified(_)));

        api.stall(Stall::Everything);
        let mut answer = Box::pin(nodes.get(NODE));
        ensure!(timeout(SILENCE, &mut answer).await.is_err(), "a stalled server answered");
        api.resume();
        timeout(Duration::from_secs(5), answer).await??;
        Ok(())
    })
}

pub fn connections() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let watch = async || {
            let version = api.resource_version().to_string();
            anyhow::Ok(nodes.watch_metadata(&WatchParams::default(), &version).await?.boxed())
        };
        let mut events = watch().await?;
        ensure!(api.watches() == 1);
        api.disconnect();
        match timeout(Duration::from_secs(5), events.next()).await? {
            None | Some(Err(_)) => {}
            Some(Ok(event)) => bail!("{event:?}"),
        }
        let mut events = watch().await?;
        api.end_watches();
        ensure!(timeout(Duration::from_secs(5), events.next()).await?.is_none(), "no clean end");

        let mut events = watch().await?;
        let version = api.resource_version().to_string();
        api.go_away();
        ensure!(matches!(timeout(Duration::from_secs(5), events.next()).await?, None | Some(Err(_))));
        let error = nodes.get(NODE).await.err().context("a server that is away answers")?;
        ensure!(!matches!(error, kube::Error::Api(_)), "{error:?}");
        // Time goes on without it.
        api.touch_status(NODE)?;
        api.come_back();
        let start = Instant::now();
        while let Err(error) = nodes.get(NODE).await {
            ensure!(start.elapsed() < Duration::from_secs(5), "not back after 5 s: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut events = nodes.watch_metadata(&WatchParams::default(), &version).await?.boxed();
        ensure!(matches!(next(&mut events).await?, WatchEvent::Modified(_)));
        Ok(())
    })
}

pub fn garbage() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let version = api.resource_version().to_string();
        let mut events = nodes.watch_metadata(&WatchParams::default(), &version).await?.boxed();
        for garbage in [Garbage::Noise, Garbage::NoEvent] {
            api.garble_watches(garbage.clone());
            let next = timeout(Duration::from_secs(5), events.next()).await?;
            ensure!(matches!(next, Some(Err(_))), "{garbage:?} was taken as {next:?}");
        }
        let client = nodes.into_client();
        let path = format!("/api/v1/nodes?watch=1&resourceVersion={version}");
        let request = Request::get(path).body(Vec::new())?.map(Into::into);
        let mut body = client.send(request).await?.into_body().into_data_stream();
        api.garble_watches(Garbage::Bytes(b"half a".to_vec()));
        let piece = timeout(Duration::from_secs(5), body.next()).await?.context("the watch has ended")??;
        ensure!(&piece[..] == b"half a", "{piece:?}");
        api.garble_watches(Garbage::Truncated);
        let mut text = Vec::new();
        let error = loop {
            match timeout(Duration::from_secs(5), body.next()).await?.context("a clean end")? {
                Ok(piece) => text.extend(piece),
                Err(error) => break error,
            }
        };
        ensure!(text.starts_with(b"{\"type\":\"MODIFIED\"") && !text.contains(&b'\n'), "{error}: {text:?}");
        Ok(())
    })
}

pub fn plain() -> Result<()> {
    let cluster = Cluster::with(1, Options { tls: false, token: None, ..Options::default() })?;
    ensure!(cluster.api.url().starts_with("http://"));
    cluster.client(|client| async move {
        ensure!(get(&client, "/version").await?["major"] == "1");
        ensure!(
            get(&client, "/api/v1/nodes").await?["items"].as_array().is_some_and(|items| items.len() == 1)
        );
        Ok(())
    })
}
