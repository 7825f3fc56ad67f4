//! The guard as it stands in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ipnet::IpNet;
use warren_api::status::{Enforcement, GuardCounters};
use warren_core::{Guard, Numbers};

use super::Found;
use super::nftables::Socket;
use super::script::{self, COUNTERS, SEAL, SETS};

/// What the guard's table holds, taken apart.
pub struct Listing {
    /// How table, chains, rules and sets read, without what changes while they stand: elements, counts, handles.
    pub fingerprint: u64,
    seals: Vec<String>,
    sets: BTreeMap<String, BTreeSet<IpNet>>,
    counters: BTreeMap<String, u64>,
}

/// Reads the table, if there is one.
pub fn list(socket: &mut Socket) -> io::Result<Option<Listing>> {
    let Some(table) = socket.table()? else { return Ok(None) };
    let (seals, chains): (Vec<_>, Vec<_>) =
        socket.chains()?.into_iter().partition(|chain| chain.name.starts_with(SEAL));
    let (rules, sets, objects) = (socket.rules()?, socket.sets()?, socket.objects()?);
    let mut skeleton = Vec::new();
    for (kind, parts) in
        [(b't', &vec![table]), (b'c', &chains), (b'r', &rules), (b's', &sets), (b'o', &objects)]
    {
        for part in parts {
            skeleton.push(kind);
            skeleton.extend_from_slice(&part.skeleton);
        }
    }
    let mut listing = Listing {
        fingerprint: 0,
        seals: seals.into_iter().map(|chain| chain.name).collect(),
        sets: BTreeMap::new(),
        counters: objects.into_iter().filter_map(|object| Some((object.name, object.packets?))).collect(),
    };
    for set in sets {
        if SETS.contains(&set.name.as_str()) {
            let nets = socket.networks(&set.name)?.into_iter().collect();
            listing.sets.insert(set.name, nets);
        } else {
            // What stands in braces in a rule.
            skeleton.extend_from_slice(&socket.raw_elements(&set.name)?);
        }
    }
    listing.fingerprint = script::fingerprint(&skeleton);
    Ok(Some(listing))
}

/// What stands in the kernel.
pub fn found(listing: &Listing, numbers: &Numbers) -> Found {
    let net = |name: &str| {
        [4, 6].iter().filter_map(|n| listing.sets.get(&format!("{name}{n}"))).flatten().copied().collect()
    };
    let sets = Guard {
        enforcement: Enforcement::default(),
        remote_pods: net("remote_pods"),
        local_pods: net("local_pods"),
        remote_nodes: net("remote_nodes"),
        hosts: net("hosts"),
    };
    let rules = Guard { local_pods: sets.local_pods.clone(), ..Guard::default() };
    let sealed = |enforcement: &Enforcement| {
        let guard = Guard { enforcement: *enforcement, ..rules.clone() };
        listing.seals == [script::seal(&guard, numbers, listing.fingerprint)]
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
