//! The guard as `nft -j` prints it (schema: libnftables-json(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use warren_api::status::{Enforcement, GuardCounters};
use warren_core::Guard;

use super::Found;
use super::script::{self, COUNTERS};

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// One object of the listing; the kinds that do not matter here are all `Other`.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Object {
    Chain {
        name: String,
        hook: Option<String>,
        prio: Option<i32>,
        policy: Option<String>,
    },
    Rule {
        chain: String,
        comment: Option<String>,
    },
    Set {
        name: String,
        #[serde(default)]
        elem: Vec<Value>,
    },
    Counter {
        name: String,
        packets: u64,
    },
    #[serde(untagged)]
    Other(#[expect(dead_code, reason = "read, and passed over")] Value),
}

/// Reads a listing of the guard's table.
pub fn parse(json: &[u8]) -> Result<Found, serde_json::Error> {
    let Listing { nftables } = serde_json::from_slice(json)?;
    let mut chains = BTreeMap::new();
    let mut rules = Vec::new();
    let mut sets = BTreeMap::new();
    let mut counters = BTreeMap::new();
    for object in nftables {
        match object {
            Object::Chain { name, hook, prio, policy } => {
                chains.insert(name, (hook, prio, policy));
            }
            Object::Rule { chain, comment } => rules.push((chain, comment)),
            Object::Set { name, elem } => {
                sets.insert(name, elem.iter().map(net).collect::<Option<BTreeSet<IpNet>>>());
            }
            Object::Counter { name, packets } => {
                counters.insert(name, packets);
            }
            Object::Other(_) => {}
        }
    }
    let [out_pod, out_node, in_pod, in_node] =
        COUNTERS.map(|name| counters.get(name).copied().unwrap_or_default());
    let enforcement = [Enforcement::Strict, Enforcement::Permissive]
        .into_iter()
        .find(|enforcement| has_rules(*enforcement, &chains, &rules));
    let whole = enforcement.filter(|_| COUNTERS.iter().all(|name| counters.contains_key(*name)));
    Ok(Found {
        table: true,
        guard: whole.and_then(|enforcement| guard(enforcement, &sets)),
        counters: GuardCounters { out_pod, out_node, in_pod, in_node },
    })
}

type Chains = BTreeMap<String, (Option<String>, Option<i32>, Option<String>)>;

/// Whether chains and rules are exactly those of this enforcement.
fn has_rules(enforcement: Enforcement, chains: &Chains, rules: &[(String, Option<String>)]) -> bool {
    let wanted = script::chains(enforcement);
    chains.len() == wanted.len()
        && rules.len() == wanted.iter().map(|chain| chain.rules.len()).sum::<usize>()
        && wanted.iter().all(|chain| {
            let found = rules.iter().filter(|(name, _)| name == chain.name).map(|(_, comment)| comment);
            let base = (Some(chain.hook.to_owned()), Some(chain.priority), Some("accept".to_owned()));
            chains.get(chain.name) == Some(&base)
                && found.clone().count() == chain.rules.len()
                && found.enumerate().all(|(index, comment)| {
                    comment.as_deref() == Some(script::comment(enforcement, chain.name, index).as_str())
                })
        })
}

fn guard(enforcement: Enforcement, sets: &BTreeMap<String, Option<BTreeSet<IpNet>>>) -> Option<Guard> {
    let both = |name: &str| {
        let v4 = sets.get(&format!("{name}4"))?.as_ref()?;
        let v6 = sets.get(&format!("{name}6"))?.as_ref()?;
        Some(v4 | v6)
    };
    Some(Guard {
        enforcement,
        remote_pods: both("remote_pods")?,
        local_pods: both("local_pods")?,
        remote_nodes: both("remote_nodes")?,
    })
}

/// An element of an interval set: an address, or a prefix. Ranges are never written, so they are foreign.
fn net(element: &Value) -> Option<IpNet> {
    if let Some(address) = element.as_str() {
        return address.parse::<IpAddr>().ok().map(IpNet::from);
    }
    let prefix = element.get("prefix")?;
    let address: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
    IpNet::new(address, u8::try_from(prefix.get("len")?.as_u64()?).ok()?).ok()
}
