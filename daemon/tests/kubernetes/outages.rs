//! What happens to control planes, while pods talk: nothing is lost, nothing is in the clear, and what changed
//! meanwhile is known afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use warren_testkit::lab::WarrendOptions;

use crate::cluster::{
    NEWS, RETURN, VISITOR, VISITORS_CIDR, await_contact, await_known, leave, news_arrives, three_nodes, visit,
};
use crate::common::{Mesh, in_lab, in_mesh};

/// How long the API server is away, beyond what it takes to notice and to start it.
const AWAY: Duration = Duration::from_secs(3);

pub fn killed() -> Result<()> {
    withstand(|mesh| {
        let api = mesh.lab.api();
        api.kill()?;
        await_contact(mesh, false, NEWS)?;
        std::thread::sleep(AWAY);
        alive(mesh)?;
        api.restart()
    })
}

/// No kubelet restarts a daemon because the API server is away, or takes it for unready.
fn alive(mesh: &Mesh) -> Result<()> {
    for node in &mesh.lab.nodes {
        for probe in ["/livez", "/readyz"] {
            let (code, text) = node.http(probe)?;
            ensure!(code == 200, "{probe} of {}: {code} {text}", node.name);
        }
    }
    Ok(())
}

/// The server answers nobody, though its connections stand.
pub fn paused() -> Result<()> {
    withstand(|mesh| {
        let api = mesh.lab.api();
        api.pause()?;
        // As long as the client has patience.
        ensure!(api.ready().is_err(), "a paused server answers");
        api.resume()
    })
}

/// The server vanishes from the network: nothing arrives, and nothing says so. What is changed meanwhile is
/// known when it is back.
pub fn cut_off() -> Result<()> {
    withstand(|mesh| {
        let cut = mesh.lab.api().cut()?;
        visit(&mesh.lab, VISITORS_CIDR, |_| None)?;
        std::thread::sleep(AWAY);
        alive(mesh)?;
        ensure!(await_known(mesh, VISITOR, true, Duration::ZERO).is_err(), "the cut cut nothing");
        drop(cut);
        await_known(mesh, VISITOR, true, RETURN)?;
        leave(&mesh.lab)?;
        await_known(mesh, VISITOR, false, NEWS)?;
        Ok(())
    })
}

/// The server loses its store, and gets it back.
pub fn etcd_away() -> Result<()> {
    withstand(|mesh| {
        let api = mesh.lab.api();
        api.kill_etcd()?;
        ensure!(visit(&mesh.lab, VISITORS_CIDR, |_| None).is_err(), "a server without etcd creates Nodes");
        std::thread::sleep(AWAY);
        api.restart_etcd()?;
        warren_testkit::wait::until("the API server's readiness", RETURN, || api.ready())?;
        // The request that failed may still have been carried out.
        let _ = leave(&mesh.lab);
        Ok(())
    })
}

/// While the daemons watch, the server forgets history and a Node appears. When they come back, it cannot tell them
/// what they missed, and says 410 Gone.
pub fn compacted() -> Result<()> {
    withstand(|mesh| {
        let api = mesh.lab.api();
        let version = api.client().get("/api/v1/nodes?limit=1")?.ok()?["metadata"]["resourceVersion"].clone();
        let version = version.as_str().context("a list without resourceVersion")?.to_owned();
        let lists = lists(mesh)?;
        for node in &mesh.lab.nodes {
            node.pause_warrend()?;
        }
        // History goes on, but not that of Nodes: the daemons have seen none of what is forgotten.
        let config_map = json!({"metadata": {"name": "history"}});
        api.client().create("/api/v1/namespaces/default/configmaps", &config_map)?.ok()?;
        api.kill()?;
        api.compact()?;
        api.restart()?;
        visit(&mesh.lab, VISITORS_CIDR, |_| None)?;
        let watch = format!("/api/v1/nodes?watch=1&timeoutSeconds=1&resourceVersion={version}");
        let answer = api.client().get(&watch)?.text;
        ensure!(answer.contains("410"), "the server still remembers {version}: {answer}");
        for node in &mesh.lab.nodes {
            node.resume_warrend()?;
        }
        let took = await_known(mesh, VISITOR, true, RETURN)?;
        leave(&mesh.lab)?;
        await_known(mesh, VISITOR, false, NEWS)?;
        let again: Vec<u64> =
            self::lists(mesh)?.iter().zip(lists).map(|(now, before)| now - before).collect();
        ensure!(
            again.iter().all(|lists| *lists >= 1),
            "who was told 410 has to list, but did {again:?} times"
        );
        println!("after 410 Gone: lists made {again:?}, what was missed is known after {took:?}");
        Ok(())
    })
}

/// The lists that each daemon has asked for.
fn lists(mesh: &Mesh) -> Result<Vec<u64>> {
    let count = |node: &warren_testkit::lab::Node| {
        let registry = node.status()?.registry.context("a status without registry")?;
        registry.requests.get("list").copied().context("lists are not counted")
    };
    mesh.lab.nodes.iter().map(count).collect()
}

/// The server crawls, from before the first daemon starts: it runs for a tenth of the time.
pub fn slowed() -> Result<()> {
    in_lab(three_nodes(), |mesh| {
        let slow = mesh.lab.api().slow(Duration::from_millis(50), Duration::from_millis(450))?;
        ensure!(slowest(mesh)? > Duration::from_millis(200), "the server is as fast as ever");
        let start = Instant::now();
        mesh.lab.start_all(&WarrendOptions::default())?;
        mesh.await_up()?;
        let up = start.elapsed();
        let traffic = mesh.traffic()?;
        let took = news_arrives(mesh, RETURN)?;
        drop(slow);
        let damage = traffic.stop()?;
        damage.none()?;
        mesh.sealed()?;
        println!("up in {up:?}, news in {took:?}, 0 of {} pings lost", damage.sent);
        Ok(())
    })
}

/// The longest time that one of a few requests takes.
fn slowest(mesh: &Mesh) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let start = Instant::now();
        mesh.lab.api().client().get("/version")?.ok()?;
        slowest = slowest.max(start.elapsed());
    }
    Ok(slowest)
}

/// Has something happen to the control plane while pods talk, and news made afterwards arrive.
fn withstand(what: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    in_mesh(three_nodes(), |mesh| {
        let traffic = mesh.traffic()?;
        let start = Instant::now();
        what(mesh)?;
        let lasted = start.elapsed();
        let took = news_arrives(mesh, RETURN).context("afterwards")?;
        await_contact(mesh, true, NEWS)?;
        mesh.await_up()?;
        let damage = traffic.stop()?;
        damage.none()?;
        let report = mesh.sealed()?;
        println!(
            "over {lasted:.1?} 0 of {} pings lost, 0 of {} packets in the clear; news afterwards in {took:.1?}",
            damage.sent,
            report.total()
        );
        Ok(())
    })
}
