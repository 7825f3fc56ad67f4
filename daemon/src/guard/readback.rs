//! The guard as `nft -j` prints it (schema: libnftables-json(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};
use warren_api::status::{Enforcement, GuardCounters};
use warren_core::Guard;

use super::Found;
use super::script::{self, COUNTERS, SEAL};

/// A listing of the guard's table, taken apart.
pub struct Listing {
    /// How chains, rules and sets read, without what changes while they stand: elements, counts, handles.
    pub fingerprint: u64,
    seals: Vec<String>,
    sets: BTreeMap<String, BTreeSet<IpNet>>,
    counters: BTreeMap<String, u64>,
}

/// Reads a listing.
pub fn listing(json: &[u8]) -> Result<Listing, serde_json::Error> {
    let mut document: Map<String, Value> = serde_json::from_slice(json)?;
    let objects = document.remove("nftables");
    let mut skeleton = String::new();
    let mut listing =
        Listing { fingerprint: 0, seals: Vec::new(), sets: BTreeMap::new(), counters: BTreeMap::new() };
    for object in objects.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        let name = body.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "metainfo" => continue,
            "chain" if name.starts_with(SEAL) => {
                listing.seals.push(name);
                continue;
            }
            "set" => {
                let elements = body.get("elem").and_then(Value::as_array);
                let nets = elements.into_iter().flatten().filter_map(net).collect();
                listing.sets.insert(name, nets);
            }
            "counter" => {
                let packets = body.get("packets").and_then(Value::as_u64).unwrap_or_default();
                listing.counters.insert(name, packets);
            }
            _ => {}
        }
        skeleton.push_str(&without_changing(object.clone()).to_string());
    }
    listing.fingerprint = script::fingerprint(skeleton.as_bytes());
    Ok(listing)
}

/// What stands in the kernel.
pub fn found(listing: &Listing) -> Found {
    let net = |name: &str| {
        [4, 6].iter().filter_map(|n| listing.sets.get(&format!("{name}{n}"))).flatten().copied().collect()
    };
    let sets = Guard {
        enforcement: Enforcement::default(),
        remote_pods: net("remote_pods"),
        local_pods: net("local_pods"),
        remote_nodes: net("remote_nodes"),
    };
    let sealed = |enforcement: &Enforcement| {
        let guard = Guard { enforcement: *enforcement, ..sets.clone() };
        listing.seals == [script::seal(&guard, listing.fingerprint)]
    };
    let enforcement = [Enforcement::Strict, Enforcement::Permissive].into_iter().find(sealed);
    let [out_pod, out_node, in_pod, in_node] =
        COUNTERS.map(|name| listing.counters.get(name).copied().unwrap_or_default());
    Found {
        table: true,
        guard: enforcement.map(|enforcement| Guard { enforcement, ..sets.clone() }),
        sets,
        counters: GuardCounters { out_pod, out_node, in_pod, in_node },
    }
}

/// An object without what changes while it stands.
fn without_changing(mut object: Value) -> Value {
    for body in object.as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Some(body) = body.as_object_mut() {
            for changing in ["handle", "elem", "packets", "bytes"] {
                body.remove(changing);
            }
        }
    }
    object
}

/// An element of an interval set: an address or a prefix. Ranges are never written; one that somebody else put
/// there stays, and blocks at most too much.
fn net(element: &Value) -> Option<IpNet> {
    if let Some(address) = element.as_str() {
        return address.parse::<IpAddr>().ok().map(IpNet::from);
    }
    let prefix = element.get("prefix")?;
    let address: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
    IpNet::new(address, u8::try_from(prefix.get("len")?.as_u64()?).ok()?).ok()
}
