//! Whatever happens to the server and the wire.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::time::sleep;
use warren_testkit::apiserver::fake::{Failure, Garbage, NodeSpec, Stall, Verb};

use crate::site::{OTHER, OWN, SILENCE, SOON, Site, at_site, at_site_of, at_site_with, start, version};

/// Changes something and waits until it is known: that the watch works.
async fn news(site: &Site<'_>, number: u32) -> Result<Duration> {
    site.announce(OTHER, &version(number))?;
    site.until_announces(OTHER, &format!("UnknownVersion({number})")).await
}

pub fn heartbeats() -> Result<()> {
    at_site(100, async |site| {
        let before = site.known()?;
        let versions = site.server.resource_version();
        site.server.set_heartbeats(Some(Duration::from_millis(500)));
        site.until("heartbeats", |site| {
            ensure!(site.server.resource_version() > versions + 300, "few heartbeats");
            Ok(())
        })
        .await?;
        site.server.set_heartbeats(None);
        let took = news(site, 7).await?;
        ensure!(took < Duration::from_millis(200), "a change took {took:?}");
        ensure!(site.known()?.len() == before.len());
        let asked = [Verb::List, Verb::ListMetadata, Verb::WatchMetadata, Verb::Watch, Verb::Get];
        let asked = asked.map(|verb| site.asked(verb));
        // The own Node may be asked for again after its heartbeat, once in 30 s, and the other for its news.
        ensure!(asked[..4] == [1, 0, 1, 0] && asked[4] <= 2, "asked {asked:?}");
        ensure!(site.server.writes().is_empty());
        Ok(())
    })
}

pub fn changes() -> Result<()> {
    at_site(3, async |site| {
        for (number, expected) in [(7, 1), (8, 2)] {
            news(site, number).await?;
            ensure!(site.asked(Verb::Get) == expected, "{} questions", site.asked(Verb::Get));
        }
        // What a node takes back, and what is gone, needs none.
        site.server.update_annotations(OTHER, &[("warren.internal/announcement", None)])?;
        site.until_announces(OTHER, "None").await?;
        site.server.delete_node("node-00003")?;
        site.until("the deletion", |site| {
            ensure!(!site.known()?.contains_key("node-00003"));
            Ok(())
        })
        .await?;
        ensure!(site.asked(Verb::Get) == 2);

        let new = NodeSpec { pod_cidrs: vec![], ..NodeSpec::numbered(4) };
        site.server.add_node(&new)?;
        site.until("the new node", |site| {
            ensure!(site.known()?.contains_key(&new.name));
            Ok(())
        })
        .await?;
        // Kubernetes gives it its pod CIDR a moment later; the metadata do not tell which.
        site.server.update(&new.name, |node| node["spec"]["podCIDRs"] = ["10.9.9.0/24"].into())?;
        site.until("the late pod CIDR", |site| {
            ensure!(!site.known()?[&new.name].pod_cidrs.is_empty());
            Ok(())
        })
        .await?;
        ensure!(site.asked(Verb::Get) == 4, "{} questions", site.asked(Verb::Get));

        // Made anew with other pods.
        site.server.recreate_node(OTHER, "another-uid")?;
        site.until("its successor", |site| {
            ensure!(site.known()?.get(OTHER).is_some_and(|node| node.uid == "another-uid"));
            Ok(())
        })
        .await?;
        Ok(())
    })
}

pub fn ends() -> Result<()> {
    at_site(3, async |site| {
        for number in 7..10 {
            site.server.end_watches();
            news(site, number).await?;
            site.server.disconnect();
            news(site, number + 100).await?;
        }
        ensure!(site.asked(Verb::List) == 1 && site.asked(Verb::ListMetadata) == 0);
        Ok(())
    })
}

pub fn gone() -> Result<()> {
    for as_status in [false, true] {
        at_site(5, async |site| {
            site.server.set_gone_as_status(as_status);
            site.server.go_away();
            site.announce(OTHER, &version(7))?;
            site.server.delete_node("node-00003")?;
            site.server.add_node(&NodeSpec::numbered(6))?;
            site.server.compact();
            site.server.come_back();
            site.until_announces(OTHER, "UnknownVersion(7)").await?;
            site.until("what was missed", |site| {
                let known = site.known()?;
                ensure!(!known.contains_key("node-00003") && known.contains_key("node-00006"), "{known:?}");
                Ok(())
            })
            .await?;
            ensure!((site.asked(Verb::List), site.asked(Verb::ListMetadata)) == (1, 1));
            // The node that changed and the one that came; the own Node may be looked at again.
            ensure!((2..=3).contains(&site.asked(Verb::Get)), "{} questions", site.asked(Verb::Get));

            site.until("the watch", Site::is_watching).await?;
            site.server.compact_and_expire_watches();
            news(site, 8).await?;
            let lists = (site.asked(Verb::List), site.asked(Verb::ListMetadata));
            ensure!(lists == (1, 2), "{lists:?}");
            Ok(())
        })?;
    }
    Ok(())
}

pub fn restored() -> Result<()> {
    at_site(5, async |site| {
        for number in 0..50 {
            site.announce(OTHER, &version(100 + number))?;
        }
        site.until_announces(OTHER, "UnknownVersion(149)").await?;
        // Its successor has not come so far, and knows fewer nodes.
        let (address, before) = (site.server.address(), site.server.resource_version());
        site.server.go_away();
        let fresh = (1..=3).map(NodeSpec::numbered).collect::<Vec<_>>();
        // The address is free once the old one is gone.
        let old = std::mem::replace(&mut site.server, start(site.netns, "127.0.0.1:0".parse()?)?);
        drop(old);
        site.server = start(site.netns, address)?;
        site.server.add_nodes(&fresh)?;
        ensure!(site.server.resource_version() < before);
        site.until("what the backup holds", |site| {
            let known = site.known()?;
            ensure!(known.len() == 3, "{} are known, {:?}", known.len(), site.registry.status());
            Ok(())
        })
        .await?;
        news(site, 8).await?;
        Ok(())
    })
}

pub fn garbage() -> Result<()> {
    at_site(3, async |site| {
        let pieces = [
            Garbage::Noise,
            Garbage::NoEvent,
            Garbage::Truncated,
            Garbage::Bytes(vec![0xff; 5000]),
            Garbage::Bytes(b"\n\n\n".to_vec()),
        ];
        for (garbage, number) in pieces.into_iter().zip(7..) {
            site.until("a watch", Site::is_watching).await?;
            site.server.garble_watches(garbage.clone());
            // What is never finished is cut by nobody but the server.
            if matches!(garbage, Garbage::Bytes(_)) {
                site.server.disconnect();
            }
            news(site, number).await?;
            ensure!(site.known()?.len() == 3, "{garbage:?}");
        }
        Ok(())
    })
}

pub fn errors() -> Result<()> {
    at_site(3, async |site| {
        for (code, number) in [(429, 7), (500, 8), (503, 9), (403, 10)] {
            site.server.fail(Failure::status(code).retry_after(1).times(2));
            site.server.disconnect();
            news(site, number).await?;
            ensure!(site.known()?.len() == 3, "after {code}");
            // A watch that has worked for a while is no further attempt of the last failures.
            site.until("a watch", Site::is_watching).await?;
            sleep(Duration::from_millis(1200)).await;
        }
        site.server.set_latency(Duration::from_millis(300));
        site.server.disconnect();
        news(site, 11).await?;
        Ok(())
    })
}

/// Refused for a while, the daemon asks ever more rarely: after 0.5 s to 1 s, then twice as long each time.
pub fn overloaded() -> Result<()> {
    at_site(3, async |site| {
        site.server.fail(Failure::status(503));
        site.server.reset_counts();
        site.server.disconnect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(7) {
            ensure!(site.known()?.len() == 3, "{} are known", site.known()?.len());
            sleep(Duration::from_millis(100)).await;
        }
        let asked: u64 = Verb::ALL.into_iter().map(|verb| site.asked(verb)).sum();
        // At once, then after at least 0.5, 1, 2 and 4 s, at most 1, 2 and 4.
        ensure!((3..=4).contains(&asked), "{asked} requests in 7 s");
        ensure!(!site.registry.status().connected);
        site.server.lift_failures();
        news(site, 7).await?;
        Ok(())
    })
}

/// Nothing happens but bookmarks: the watch goes on. Then not even these come: it is given up, and what it missed
/// is found.
pub fn silence() -> Result<()> {
    at_site(3, async |site| {
        sleep(SILENCE * 2).await;
        let asked = [Verb::List, Verb::ListMetadata, Verb::WatchMetadata].map(|verb| site.asked(verb));
        ensure!(asked == [1, 0, 1], "while nothing happens, asked {asked:?}");
        ensure!(site.registry.status().connected);

        site.server.stall(Stall::Watches);
        let took = news(site, 7).await?;
        ensure!(took > SILENCE / 2, "the watch is not silent: news after {took:?}");
        ensure!(site.asked(Verb::List) == 1 && site.asked(Verb::ListMetadata) >= 1);
        site.server.resume();
        site.until("a watch", Site::is_watching).await?;
        news(site, 8).await?;
        Ok(())
    })
}

/// History is compacted while a list is read: the server knows nothing of the next page any more.
pub fn compacted_list() -> Result<()> {
    const NODES: u16 = 1200;
    let specs: Vec<NodeSpec> = (1..=NODES).map(NodeSpec::numbered).collect();
    at_site_of(&specs, async |site| {
        // Whatever was under way is begun anew.
        site.server.go_away();
        site.server.set_latency(Duration::from_millis(500));
        site.server.reset_counts();
        ensure!(site.known().is_err(), "it was listed before anything could be done about it");
        site.server.come_back();
        site.until("the first page", |site| {
            let pages = site.server.count(Verb::List);
            ensure!(pages.bytes > 0 && pages.requests == 2, "{pages:?}");
            Ok(())
        })
        .await?;
        site.server.compact();
        site.server.delete_node("node-01200")?;
        site.until("the refusal", |site| {
            let trouble = site.registry.status().trouble.unwrap_or_default();
            ensure!(trouble.contains("cannot be listed") && trouble.contains("continue"), "{trouble:?}");
            Ok(())
        })
        .await?;
        ensure!(site.known().is_err(), "half a list is believed");
        site.server.set_latency(Duration::ZERO);
        site.until("the list", |site| {
            let known = site.known()?;
            ensure!(known.len() == usize::from(NODES) - 1 && known.contains_key("node-01199"));
            ensure!(site.registry.status().connected);
            Ok(())
        })
        .await?;
        let pages = site.asked(Verb::List);
        ensure!(pages == 5, "{pages} pages: one, the refused one, and three");
        Ok(())
    })
}

/// The watch tells that a Node changed, but it may not be read: that is said, and nothing new is believed.
pub fn unread() -> Result<()> {
    at_site(3, async |site| {
        site.announce(OTHER, &version(7))?;
        site.until_announces(OTHER, "UnknownVersion(7)").await?;
        site.server.fail(Failure::status(403).of(Verb::Get));
        site.announce(OTHER, &version(8))?;
        site.until("the reason", |site| {
            let status = site.registry.status();
            let trouble = status.trouble.unwrap_or_default();
            let said = [OTHER, "ClusterRole warren-daemon"].iter().all(|part| trouble.contains(part));
            ensure!(said && !status.connected, "{trouble:?}");
            Ok(())
        })
        .await?;
        ensure!(site.is_watching().is_ok(), "the watch works");
        site.until_announces(OTHER, "UnknownVersion(7)").await?;
        site.server.lift_failures();
        site.until_announces(OTHER, "UnknownVersion(8)").await?;
        site.until("contact", |site| {
            ensure!(site.registry.status().connected, "{:?}", site.registry.status());
            Ok(())
        })
        .await?;
        Ok(())
    })
}

/// The ServiceAccount's token is replaced in its file, as the kubelet does, and the old one holds no more. The file is
/// read once a minute.
pub fn new_token() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "the-token-of-the-fake")?;
    let nodes = [1, 2].map(NodeSpec::numbered);
    at_site_with(
        &nodes,
        |server| server.kubeconfig_with_token_file(file.path()),
        async |site| {
            site.until("a watch", Site::is_watching).await?;
            std::fs::write(file.path(), "another")?;
            site.server.set_token(Some("another"));
            site.server.disconnect();
            site.announce(OTHER, &version(7))?;
            let limit = Duration::from_secs(60) + SOON;
            site.until_within(limit, "news with the new token", |site| {
                let known = site.known()?;
                ensure!(known.len() == 2, "{} are known", known.len());
                ensure!(format!("{:?}", known[OTHER].announcement).contains("UnknownVersion(7)"));
                Ok(())
            })
            .await?;
            site.registry.publish(&[(warren_api::annotations::ANNOUNCEMENT, "mine".to_owned())]);
            site.until("the announcement", |site| {
                let stands = site.server.annotation(OWN, warren_api::annotations::ANNOUNCEMENT);
                ensure!(stands.as_deref() == Some("mine"), "it is {stands:?}");
                Ok(())
            })
            .await?;
            ensure!(site.asked(Verb::List) == 1, "{} lists", site.asked(Verb::List));
            Ok(())
        },
    )
}

pub fn away() -> Result<()> {
    at_site(50, async |site| {
        for stalled in [false, true] {
            let number = if stalled { 7 } else { 8 };
            if stalled {
                site.server.stall(Stall::Everything)
            } else {
                site.server.go_away()
            };
            site.announce(OTHER, &version(number))?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(3) {
                ensure!(site.known()?.len() == 50, "{} are known", site.known()?.len());
                sleep(Duration::from_millis(100)).await;
            }
            if !stalled {
                let status = site.registry.status();
                ensure!(!status.connected && status.trouble.is_some(), "{status:?}");
            }
            if stalled {
                site.server.resume()
            } else {
                site.server.come_back()
            };
            site.until_announces(OTHER, &format!("UnknownVersion({number})")).await?;
            site.until("contact", |site| {
                ensure!(site.registry.status().connected, "{:?}", site.registry.status());
                Ok(())
            })
            .await?;
        }
        ensure!(site.asked(Verb::List) == 1);
        Ok(())
    })
}

pub fn never_there() -> Result<()> {
    at_site_of(&[NodeSpec::numbered(1)], async |site| {
        site.server.go_away();
        site.until("the reason", |site| {
            let error = site.registry.read().err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(error.contains(&site.server.url()) && error.contains("onnect"), "{error:?}");
            Ok(())
        })
        .await?;
        site.server.come_back();
        site.until("the list", |site| site.known().map(drop)).await?;
        ensure!(site.known()?.contains_key(OWN));
        Ok(())
    })
}

pub fn refused() -> Result<()> {
    at_site(2, async |site| {
        let token = "the-token-of-the-fake";
        for (code, hint) in [(401, "token"), (403, "ClusterRole warren-daemon")] {
            if code == 401 {
                site.server.set_token(Some("another"));
            } else {
                site.server.fail(Failure::status(code));
            }
            site.server.disconnect();
            site.until("the hint", |site| {
                let trouble = site.registry.status().trouble.unwrap_or_default();
                ensure!(trouble.contains(hint) && !trouble.contains(token), "{trouble:?}");
                Ok(())
            })
            .await?;
            site.server.set_token(Some(token));
            site.server.lift_failures();
            site.until("contact", |site| {
                ensure!(site.registry.status().connected, "no contact");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
}
