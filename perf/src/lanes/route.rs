//! The lane that the kernel's routing gives a flow: asked for, not computed, since the hash has a secret seed.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use warren_api::names;

use super::Flow;

/// The interface that the kernel chooses by the flow's addresses and ports.
pub fn lane(flow: &Flow) -> Result<String> {
    let source = flow.source.ip().to_string();
    let arrival = get(&[&source])?;
    let (destination, protocol) = (flow.destination.ip().to_string(), flow.protocol.to_string());
    let (from, to) = (flow.source.port().to_string(), flow.destination.port().to_string());
    let mut question = vec![destination.as_str(), "from", &source];
    // A pod's packets arrive from it; the node's own come from nowhere.
    if arrival != "lo" {
        question.extend(["iif", &arrival]);
    }
    question.extend(["ipproto", &protocol, "sport", &from, "dport", &to]);
    ensure!(
        !names::is_tunnel(&arrival),
        "{source} is on another node (behind {arrival}): ask there, or for the flow the other way"
    );
    let lane = get(&question)?;
    ensure!(
        names::is_tunnel(&lane),
        "{flow} leaves this node by {lane}, through no tunnel: is its destination a pod of another node?"
    );
    Ok(lane)
}

/// The interface of `ip route get`.
fn get(question: &[&str]) -> Result<String> {
    let shown = || format!("ip route get {}", question.join(" "));
    let output = Command::new("ip").args(["-json", "route", "get"]).args(question).output();
    let output = output.with_context(|| format!("starting {}; install iproute2", shown()))?;
    ensure!(output.status.success(), "{}: {}", shown(), String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    interface(&text).with_context(|| format!("{} says {text:?}", shown()))
}

/// Reads it out of a document like `[{"dst":"10.244.2.11","dev":"warren-a1",…}]`.
fn interface(document: &str) -> Option<String> {
    let routes: serde_json::Value = serde_json::from_str(document).ok()?;
    Some(routes.get(0)?.get("dev")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::interface;

    #[test]
    fn the_answer_of_ip_is_read() {
        let said =
            r#"[{"dst":"10.244.2.11","from":"10.244.1.11","dev":"warren-a1","flags":[],"cache":["iif"]}]"#;
        assert_eq!(interface(said).as_deref(), Some("warren-a1"));
        for nothing in ["", "[]", "[{}]", r#"[{"type":"unreachable","dst":"10.244.2.11"}]"#] {
            assert_eq!(interface(nothing), None, "{nothing}");
        }
    }
}
