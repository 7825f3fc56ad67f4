//! 410: what a client asks for lies before the history that is kept.

use anyhow::{Result, bail, ensure};
use futures_util::StreamExt;
use kube::api::{WatchEvent, WatchParams};
use warren_testkit::apiserver::fake::Options;

use crate::cluster::{Cluster, refused};
use crate::watching::next;

pub fn too_old() -> Result<()> {
    let cluster = Cluster::with(1, Options { history: 5, ..Options::default() })?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let start = api.resource_version();
        let params = WatchParams::default();
        for _ in 0..6 {
            api.touch_status("node-00001")?;
        }
        let mut events = nodes.watch_metadata(&params, &start.to_string()).await?.boxed();
        match next(&mut events).await? {
            WatchEvent::Error(status) => {
                ensure!((status.code, status.reason.as_str()) == (410, "Expired"), "{status:?}");
            }
            other => bail!("{other:?}"),
        }
        ensure!(events.next().await.is_none(), "the watch goes on after 410");
        // One version later all is still there.
        let mut events = nodes.watch_metadata(&params, &(start + 1).to_string()).await?.boxed();
        for _ in 0..5 {
            ensure!(matches!(next(&mut events).await?, WatchEvent::Modified(_)));
        }
        api.set_gone_as_status(true);
        match nodes.watch_metadata(&params, &start.to_string()).await {
            Ok(_) => bail!("the watch has begun"),
            Err(error) => ensure!(refused::<()>(Err(error))?.code == 410),
        }
        Ok(())
    })
}

pub fn mid_watch() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let api = &cluster.api;
    cluster.nodes(|nodes| async move {
        let start = api.resource_version().to_string();
        let mut events = nodes.watch_metadata(&WatchParams::default(), &start).await?.boxed();
        api.touch_status("node-00001")?;
        ensure!(matches!(next(&mut events).await?, WatchEvent::Modified(_)));
        // A compaction alone is no harm to who is up to date.
        api.compact();
        api.touch_status("node-00001")?;
        ensure!(matches!(next(&mut events).await?, WatchEvent::Modified(_)));
        api.compact_and_expire_watches();
        match next(&mut events).await? {
            WatchEvent::Error(status) => ensure!(status.code == 410, "{status:?}"),
            other => bail!("{other:?}"),
        }
        ensure!(events.next().await.is_none(), "the watch goes on after 410");
        ensure!(api.watches() == 0);
        Ok(())
    })
}
