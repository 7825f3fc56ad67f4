//! LIST and GET.

use anyhow::{Result, ensure};
use kube::ResourceExt;
use kube::api::{ListParams, VersionMatch};
use warren_testkit::apiserver::fake::{Options, Paging, Verb};

use crate::cluster::{Cluster, get, refused};

pub fn pages() -> Result<()> {
    let cluster = Cluster::new(7)?;
    let names = cluster.nodes(|nodes| {
        let api = &cluster.api;
        async move {
            let mut params = ListParams::default().limit(3);
            let first = nodes.list(&params).await?;
            ensure!(first.items.len() == 3 && first.metadata.remaining_item_count == Some(4));
            // What happens between pages is not seen in them.
            api.delete_node("node-00005")?;
            api.update_annotations("node-00006", &[("warren.internal/epoch", Some("1"))])?;
            let mut names: Vec<String> = first.items.iter().map(ResourceExt::name_any).collect();
            let (version, mut token) = (first.metadata.resource_version, first.metadata.continue_);
            while let Some(more) = token {
                params = params.continue_token(&more);
                let page = nodes.list_metadata(&params).await?;
                ensure!(page.metadata.resource_version == version, "{:?}", page.metadata);
                ensure!(page.items.iter().all(|node| node.annotations().len() == 2), "{:?}", page.items);
                names.extend(page.items.iter().map(ResourceExt::name_any));
                token = page.metadata.continue_;
            }
            // A page of a list that compaction took is gone.
            let again = nodes.list(&ListParams::default().limit(3)).await?;
            api.compact();
            let params =
                ListParams::default().limit(3).continue_token(&again.metadata.continue_.unwrap_or_default());
            let status = refused(nodes.list(&params).await)?;
            ensure!((status.code, status.reason.as_str()) == (410, "Expired"), "{status:?}");
            Ok(names)
        }
    })?;
    let expected: Vec<String> = (1..=7).map(|number| format!("node-{number:05}")).collect();
    ensure!(names == expected, "{names:?}");
    ensure!(cluster.api.count(Verb::List).requests == 3);
    ensure!(cluster.api.count(Verb::ListMetadata).requests == 2);
    Ok(())
}

pub fn whole_from_the_cache() -> Result<()> {
    let cluster = Cluster::with(7, Options { paging: Paging::NotFromCache, ..Options::default() })?;
    cluster.nodes(|nodes| async move {
        // By hand: kube leaves the version out where there is a limit, since old servers ignore that.
        let client = nodes.clone().into_client();
        let whole = get(&client, "/api/v1/nodes?limit=3&resourceVersion=0").await?;
        let items = whole["items"].as_array().map_or(0, Vec::len);
        ensure!(items == 7 && whole["metadata"]["continue"].is_null(), "{items} items");
        let page = nodes.list(&ListParams::default().limit(3)).await?;
        ensure!(page.items.len() == 3);
        let one = nodes.list(&ListParams::default().fields("metadata.name=node-00004")).await?;
        ensure!(one.items.len() == 1 && one.items[0].name_any() == "node-00004");
        Ok(())
    })
}

pub fn future_versions() -> Result<()> {
    let cluster = Cluster::new(1)?;
    let version = cluster.api.resource_version();
    cluster.nodes(|nodes| async move {
        let params = ListParams::default();
        nodes
            .list_metadata(&params.clone().at(&version.to_string()).matching(VersionMatch::NotOlderThan))
            .await?;
        let future = (version + 1).to_string();
        let status =
            refused(nodes.list_metadata(&params.at(&future).matching(VersionMatch::NotOlderThan)).await)?;
        ensure!((status.code, status.reason.as_str()) == (504, "Timeout"), "{status:?}");
        ensure!(status.message.contains("Too large resource version"), "{status:?}");
        let path = |version| format!("/api/v1/nodes/node-00001?resourceVersion={version}");
        let client = nodes.into_client();
        ensure!(get(&client, &path(version)).await?["metadata"]["uid"].is_string());
        ensure!(refused(get(&client, &path(version + 1)).await)?.code == 504);
        let status = refused(get(&client, "/api/v1/nodes/nobody").await)?;
        ensure!(status.code == 404 && status.message == "nodes \"nobody\" not found", "{status:?}");
        ensure!(refused(get(&client, "/api/v1/pods").await)?.code == 404);
        Ok(())
    })
}

pub fn realistic_size() -> Result<()> {
    let cluster = Cluster::new(20)?;
    let count = cluster.nodes(|nodes| {
        let api = &cluster.api;
        async move {
            nodes.list(&ListParams::default()).await?;
            nodes.list_metadata(&ListParams::default()).await?;
            Ok((api.count(Verb::List).bytes / 20, api.count(Verb::ListMetadata).bytes / 20))
        }
    })?;
    println!("bytes per Node: {} whole, {} of metadata", count.0, count.1);
    ensure!((10 << 10..15 << 10).contains(&count.0), "a Node of {} bytes", count.0);
    ensure!((2 << 10..5 << 10).contains(&count.1), "metadata of {} bytes", count.1);
    Ok(())
}
