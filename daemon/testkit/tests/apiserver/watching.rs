//! WATCH.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{Stream, StreamExt};
use kube::ResourceExt;
use kube::api::{WatchEvent, WatchParams};
use warren_testkit::apiserver::fake::Options;

use crate::cluster::{Cluster, annotation};

/// The next event of a watch that should have one by now.
pub async fn next<K: Debug>(
    events: &mut (impl Stream<Item = Result<WatchEvent<K>, kube::Error>> + Unpin),
) -> Result<WatchEvent<K>> {
    let next = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
    Ok(next.context("no event within 5 s")?.context("the watch has ended")??)
}

pub fn tells() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let start = api.resource_version();
        // Before the watch, so that it must come from the history.
        api.update_annotations("node-00001", &[("warren.internal/epoch", Some("7"))])?;
        let params = WatchParams::default();
        let mut metadata = nodes.watch_metadata(&params, &start.to_string()).await?.boxed();
        match next(&mut metadata).await? {
            WatchEvent::Modified(node) => {
                ensure!(annotation(&node, "warren.internal/epoch")? == "7");
                ensure!(node.resource_version() == Some((start + 1).to_string()));
            }
            other => bail!("{other:?}"),
        }
        let mut whole = nodes.watch(&params.fields("metadata.name=node-00002"), "0").await?.boxed();
        match next(&mut whole).await? {
            WatchEvent::Added(node) => {
                let spec = node.spec.context("a Node without spec")?;
                ensure!(spec.pod_cidrs == Some(vec!["10.0.2.0/24".into(), "fd00:10:2::/64".into()]));
            }
            other => bail!("{other:?}"),
        }
        api.recreate_node("node-00002", "another")?;
        for version in [start + 2, start + 3] {
            match (next(&mut metadata).await?, next(&mut whole).await?) {
                (WatchEvent::Deleted(seen), WatchEvent::Deleted(whole)) if version == start + 2 => {
                    ensure!(
                        seen.resource_version() == Some(version.to_string()) && seen.uid() == whole.uid()
                    );
                }
                (WatchEvent::Added(seen), WatchEvent::Added(whole)) if version == start + 3 => {
                    ensure!(seen.uid().as_deref() == Some("another") && whole.annotations().is_empty());
                }
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    })
}

pub fn heartbeats() -> Result<()> {
    let cluster = Cluster::new(50)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let start = api.resource_version();
        let mut events = nodes.watch_metadata(&WatchParams::default(), &start.to_string()).await?.boxed();
        api.touch_status("node-00007")?;
        match next(&mut events).await? {
            WatchEvent::Modified(node) => ensure!(node.name_any() == "node-00007"),
            other => bail!("{other:?}"),
        }
        // Spread evenly: nobody is heard twice before all are heard once.
        api.set_heartbeats(Some(Duration::from_millis(500)));
        let mut names = Vec::new();
        for _ in 0..50 {
            names.push(match next(&mut events).await? {
                WatchEvent::Modified(node) => node.name_any(),
                other => bail!("{other:?}"),
            });
        }
        names.sort();
        names.dedup();
        ensure!(names.len() == 50, "only {names:?}");
        api.set_heartbeats(None);
        Ok(())
    })
}

pub fn bookmarks() -> Result<()> {
    let interval = Duration::from_millis(200);
    let cluster = Cluster::with(2, Options { bookmark_interval: interval, ..Options::default() })?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        // Of a Node to which nothing happens, so that only bookmarks can tell of progress.
        let params = WatchParams::default().fields("metadata.name=node-00001");
        let mut events = nodes.watch_metadata(&params, &api.resource_version().to_string()).await?.boxed();
        api.touch_status("node-00002")?;
        for _ in 0..2 {
            match next(&mut events).await? {
                WatchEvent::Bookmark(mark) => {
                    ensure!(mark.metadata.resource_version == api.resource_version().to_string());
                }
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    })?;
    drop(cluster);

    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let start = Instant::now();
        let version = api.resource_version().to_string();
        let mut events = nodes.watch_metadata(&WatchParams::default().timeout(3), &version).await?.boxed();
        ensure!(matches!(next(&mut events).await?, WatchEvent::Bookmark(_)));
        ensure!(
            start.elapsed() < Duration::from_millis(2500),
            "the last bookmark came after {:?}",
            start.elapsed()
        );
        let end = tokio::time::timeout(Duration::from_secs(5), events.next()).await?;
        ensure!(end.is_none() && start.elapsed() >= Duration::from_millis(2900), "{end:?}");
        Ok(())
    })
}
