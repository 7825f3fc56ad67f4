//! What is written to the own Node, and what not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;
use warren_api::annotations::{ANNOUNCEMENT, EPOCH, NOT_READY};
use warren_testkit::apiserver::fake::{Failure, NodeSpec, Taint, Verb};
use warrend::happening::{Happening, Kind};

use crate::site::{OTHER, OWN, Site, at_site, at_site_of};

fn publish(site: &Site<'_>, text: &str) {
    site.registry.publish(&[(ANNOUNCEMENT, text.to_owned()), (EPOCH, "0".to_owned())]);
}

async fn until_stands(site: &Site<'_>, text: Option<&str>) -> Result<Duration> {
    site.until("the announcement", |site| {
        let stands = site.server.annotation(OWN, ANNOUNCEMENT);
        ensure!(stands.as_deref() == text, "it is {stands:?}");
        Ok(())
    })
    .await
}

pub fn once() -> Result<()> {
    at_site(3, async |site| {
        publish(site, "mine");
        until_stands(site, Some("mine")).await?;
        for _ in 0..20 {
            publish(site, "mine");
            sleep(Duration::from_millis(20)).await;
        }
        site.server.touch_status(OWN)?;
        site.server.disconnect();
        sleep(Duration::from_secs(1)).await;
        let writes = site.server.writes();
        ensure!(writes.len() == 1 && !writes[0].force && writes[0].manager == "warrend", "{writes:?}");
        ensure!(site.server.annotation(OWN, EPOCH).as_deref() == Some("0"));
        // Taken back: nothing of ours is left, and what is not ours stays.
        site.server.update_annotations(OWN, &[("warren.internal/rotate", Some("now"))])?;
        site.registry.publish(&[]);
        until_stands(site, None).await?;
        site.until("the rest", |site| {
            ensure!(site.server.annotation(OWN, EPOCH).is_none());
            Ok(())
        })
        .await?;
        ensure!(site.server.annotation(OWN, "warren.internal/rotate").is_some());
        Ok(())
    })
}

pub fn contested() -> Result<()> {
    at_site(3, async |site| {
        publish(site, "mine");
        until_stands(site, Some("mine")).await?;
        for value in [Some("theirs"), None] {
            site.server.update_annotations(OWN, &[(ANNOUNCEMENT, value)])?;
            until_stands(site, Some("mine")).await?;
        }
        ensure!(site.server.writes().iter().any(|write| write.force), "a conflict is won by force");
        site.server.reset_counts();
        // Somebody who does not stop.
        for _ in 0..150 {
            site.server.update_annotations(OWN, &[(ANNOUNCEMENT, Some("theirs"))])?;
            sleep(Duration::from_millis(20)).await;
        }
        let writes = site.server.writes().len();
        ensure!((1..=6).contains(&writes), "{writes} writes in 3 s");
        Ok(())
    })
}

pub fn made_anew() -> Result<()> {
    at_site(3, async |site| {
        publish(site, "mine");
        until_stands(site, Some("mine")).await?;
        site.server.delete_node(OWN)?;
        site.until("its deletion to be known", |site| {
            ensure!(!site.known()?.contains_key(OWN));
            Ok(())
        })
        .await?;
        let writes = site.server.writes().len();
        sleep(Duration::from_millis(300)).await;
        ensure!(site.server.writes().len() == writes, "what is not there is not written");
        site.server.add_node(&NodeSpec { uid: "successor".into(), ..NodeSpec::numbered(1) })?;
        until_stands(site, Some("mine")).await?;
        let last = site.server.writes().pop().context("no write")?;
        ensure!(last.body["metadata"]["uid"] == "successor", "{last:?}");
        Ok(())
    })
}

pub fn without_apply() -> Result<()> {
    at_site(3, async |site| {
        site.server.fail(Failure::status(500).of(Verb::Patch).times(1));
        publish(site, "mine");
        until_stands(site, Some("mine")).await?;
        let kinds: Vec<_> = site.server.writes().iter().map(|write| write.kind).collect();
        ensure!(format!("{kinds:?}").ends_with("Merge]"), "{kinds:?}");
        Ok(())
    })
}

pub fn taint() -> Result<()> {
    let taint =
        |key: &str, effect: &str| Taint { key: key.into(), value: String::new(), effect: effect.into() };
    let taints = vec![
        taint("before", "NoSchedule"),
        taint(NOT_READY, "NoSchedule"),
        taint("between", "NoExecute"),
        taint(NOT_READY, "NoExecute"),
    ];
    at_site_of(&[NodeSpec { taints, ..NodeSpec::numbered(1) }], async |site| {
        site.until("the list", |site| site.known().map(drop)).await?;
        let keys = |site: &Site<'_>| -> Result<Vec<String>> {
            let node = site.server.node(OWN).context("no Node")?;
            let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            Ok(taints.iter().map(|taint| taint["key"].as_str().unwrap_or_default().to_owned()).collect())
        };
        publish(site, "mine");
        until_stands(site, Some("mine")).await?;
        ensure!(keys(site)?.len() == 4, "the node is not ready yet");
        // Somebody else changes the list in the same moment.
        site.server.update(OWN, |node| {
            let taints = node["spec"]["taints"].as_array_mut().expect("taints");
            taints.insert(0, serde_json::json!({"key": "new", "effect": "NoSchedule"}));
        })?;
        site.registry.ready(true);
        site.until("the taint's end", |site| {
            let keys = keys(site)?;
            ensure!(keys == ["new", "before", "between"], "{keys:?}");
            Ok(())
        })
        .await?;
        Ok(())
    })
}

pub fn events() -> Result<()> {
    at_site(3, async |site| {
        let quarantined = |reason: &str| Happening {
            kind: Kind::NodeQuarantined,
            node: Some(OTHER.to_owned()),
            note: reason.to_owned(),
        };
        for _ in 0..5 {
            site.registry.tell(quarantined("a stolen key"));
        }
        site.registry.tell(Happening { kind: Kind::ClearTextStopped, node: None, note: "7 packets".into() });
        for number in 0..40 {
            let node = Some(format!("nobody-{number}"));
            site.registry.tell(Happening { kind: Kind::NodeQuarantined, node, note: String::new() });
        }
        site.until("the Events", |site| {
            ensure!(site.server.events().len() >= 2, "{} Events", site.server.events().len());
            Ok(())
        })
        .await?;
        sleep(Duration::from_millis(300)).await;
        let events = site.server.events();
        ensure!(events.len() == 2, "{events:?}");
        let of = |name: &str| events.iter().find(|event| event["regarding"]["name"] == name);
        let stolen = of(OTHER).with_context(|| format!("{events:?}"))?;
        ensure!(stolen["reason"] == "NodeQuarantined" && stolen["note"] == "a stolen key", "{stolen}");
        ensure!(stolen["metadata"]["namespace"] == "default" && stolen["type"] == "Warning", "{stolen}");
        ensure!(of(OWN).is_some_and(|event| event["reason"] == "ClearTextStopped"), "{events:?}");
        ensure!(site.registry.status().suppressed_events > 30);
        Ok(())
    })
}

/// What happens while the server is away, or before it was ever there, is told when it is back, once.
pub fn late_events() -> Result<()> {
    let own = |kind, note: &str| Happening { kind, node: None, note: note.to_owned() };
    at_site_of(&[NodeSpec::numbered(1)], async |site| {
        site.server.go_away();
        site.registry.tell(own(Kind::BackendFallback, "before anything is known"));
        site.until("the loss of contact", |site| {
            let trouble = site.registry.status().trouble.unwrap_or_default();
            ensure!(trouble.contains("onnect"), "{trouble:?}");
            Ok(())
        })
        .await?;
        site.server.come_back();
        until_told(site, &["before anything is known"]).await?;

        site.server.fail(Failure::status(503).of(Verb::PostEvent));
        site.registry.tell(own(Kind::ClearTextStopped, "while it is overloaded"));
        site.until("a vain attempt", |site| {
            ensure!(site.asked(Verb::PostEvent) >= 2, "{} Events", site.asked(Verb::PostEvent));
            Ok(())
        })
        .await?;
        site.server.lift_failures();
        until_told(site, &["before anything is known", "while it is overloaded"]).await?;

        // What is refused for good is not kept.
        site.server.reset_counts();
        site.server.fail(Failure::status(403).of(Verb::PostEvent).times(1));
        site.registry.tell(own(Kind::ClearTextPassed, "refused"));
        site.registry.tell(own(Kind::KeyRotated, "told"));
        until_told(site, &["before anything is known", "while it is overloaded", "told"]).await?;
        ensure!(site.asked(Verb::PostEvent) == 2, "{} Events", site.asked(Verb::PostEvent));
        ensure!(site.registry.status().suppressed_events == 0);
        Ok(())
    })
}

async fn until_told(site: &Site<'_>, notes: &[&str]) -> Result<Duration> {
    site.until("the Events", |site| {
        let events = site.server.events();
        let told: Vec<&str> = events.iter().filter_map(|event| event["note"].as_str()).collect();
        ensure!(told == notes, "told was {told:?}");
        Ok(())
    })
    .await
}
