//! The adapters against a real kernel: what is written reads back as what was meant, and what somebody else
//! changed reads back as changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use tokio::sync::Notify;
use warren_api::names;
use warren_api::status::{Enforcement, GuardCounters};
use warren_core::{Action, Family, Guard, Numbers, Port, Route, RouteKind, Rule};
use warren_testkit::netns::Netns;
use warren_testkit::scenario::{self, Scenario};
use warrend::guard::{self, Found};
use warrend::kernel::Kernel;
use warrend::kernel::watch::Watch;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a guard reads back as it was written", guard_round_trip),
    ("the guard's sets change in one transaction, also where networks grow and shrink", guard_updates),
    ("a guard that somebody changed is not taken for the guard", guard_damage),
    ("the guard's counters survive its replacement", guard_counters),
    ("five thousand nodes fit into the guard", guard_size),
    ("routes and rules read back as they were written", routing_round_trip),
    ("addresses read back as they were written, and what is done twice does no harm", addresses_round_trip),
    ("routes give way to others of the same key, and foreign ones are seen", routing_conflicts),
    ("every change in the kernel is noticed", changes_are_noticed),
];

fn main() -> ExitCode {
    scenario::run(&["ip", "nft"], SCENARIOS)
}

/// Runs a future in a network namespace of its own.
fn within(run: impl AsyncFnOnce(&Netns) -> Result<()> + Send) -> Result<()> {
    let netns = Netns::new("adapters")?;
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(&netns))
    })?
}

/// Lines of `ip` commands. Not as a batch of the kit's, which is for threads outside the namespace.
fn ip(netns: &Netns, lines: &str) -> Result<()> {
    lines.lines().try_for_each(|line| netns.sh(&format!("ip {line}")).map(drop))
}

fn nets(nets: &[&str]) -> BTreeSet<IpNet> {
    nets.iter().map(|net| net.parse().expect("a network in a test")).collect()
}

fn mk_guard() -> Guard {
    Guard {
        enforcement: Enforcement::Strict,
        remote_pods: nets(&[
            "10.244.2.0/24",
            "10.244.3.0/24",
            "10.244.4.7/32",
            "fd00:2::/64",
            "fd00:3::1/128",
        ]),
        local_pods: nets(&["10.244.1.0/24", "fd00:1::/64"]),
        remote_nodes: nets(&["192.0.2.2/32", "192.0.2.3/32", "fd77::2/128"]),
        hosts: nets(&["192.0.2.2/32", "fd77::2/128"]),
    }
}

async fn replace(guard: &Guard) -> Result<()> {
    Ok(guard::apply(&Action::ReplaceGuard(guard.clone()), &Numbers::default(), GuardCounters::default())
        .await?)
}

fn guard_round_trip() -> Result<()> {
    within(async |_| {
        ensure!(
            guard::find(&Numbers::default()).await? == Found::default(),
            "there is a guard where none was put"
        );
        let strict = mk_guard();
        let permissive = Guard { enforcement: Enforcement::Permissive, ..mk_guard() };
        let empty = Guard::default();
        // Prefixes of local pods stand in rules, with as many bits as they have.
        let odd = nets(&[
            "10.0.0.0/8",
            "11.244.16.0/20",
            "11.244.1.64/26",
            "11.9.9.9/32",
            "fd00::/16",
            "fd01::/56",
            "fd02::/112",
            "fd03::7/128",
        ]);
        let odd = Guard { local_pods: odd, remote_pods: BTreeSet::new(), ..mk_guard() };
        for guard in [&strict, &permissive, &empty, &odd, &strict] {
            replace(guard).await?;
            let found = guard::find(&Numbers::default()).await?;
            ensure!(found.guard.as_ref() == Some(guard), "{guard:?} reads back as {found:?}");
        }
        guard::apply(&Action::RemoveGuard, &Numbers::default(), GuardCounters::default()).await?;
        guard::apply(&Action::RemoveGuard, &Numbers::default(), GuardCounters::default()).await?;
        ensure!(guard::find(&Numbers::default()).await? == Found::default(), "the guard is still there");
        Ok(())
    })
}

fn guard_updates() -> Result<()> {
    within(async |_| {
        let steps = [
            nets(&["10.244.2.0/24", "fd00:2::/64"]),
            nets(&["10.244.0.0/16", "fd00::/16"]),
            nets(&["10.244.2.0/25", "10.244.2.128/25", "fd00:2::/64"]),
            nets(&["10.244.2.0/24", "10.244.3.0/24"]),
            nets(&[]),
            nets(&["10.244.2.5/32", "10.244.2.6/31"]),
        ];
        let mut now = mk_guard();
        replace(&now).await?;
        for step in steps {
            let wanted = Guard { remote_pods: step, ..mk_guard() };
            let minus = |a: &Guard, b: &Guard| Guard {
                remote_pods: &a.remote_pods - &b.remote_pods,
                ..Guard::default()
            };
            let update = Action::UpdateGuard { add: minus(&wanted, &now), remove: minus(&now, &wanted) };
            guard::apply(&update, &Numbers::default(), GuardCounters::default()).await?;
            let found = guard::find(&Numbers::default()).await?.guard;
            ensure!(found.as_ref() == Some(&wanted), "{wanted:?} reads back as {found:?}");
            now = wanted;
        }
        Ok(())
    })
}

fn guard_damage() -> Result<()> {
    within(async |netns| {
        for (damage, table) in [
            ("delete table inet warren", false),
            ("flush table inet warren", true),
            ("flush chain inet warren out", true),
            ("add rule inet warren out accept", true),
            ("insert rule inet warren in accept", true),
            ("add chain inet warren extra", true),
            ("flush chain inet warren in; add rule inet warren in iifname \"warren-*\" accept", true),
            ("delete chain inet warren mss", true),
            ("add table inet warren { flags dormant; }", true),
            ("delete chain inet warren mss; add chain inet warren mss", true),
            ("add set inet warren more { type ipv4_addr; }", true),
            ("add element inet warren local_pods4 { 10.244.9.0/24 }", true),
            ("delete table inet warren; add table inet warren", true),
            ("flush table inet warren; delete set inet warren remote_pods6", true),
        ] {
            replace(&mk_guard()).await?;
            netns.nft(damage)?;
            let found = guard::find(&Numbers::default()).await?;
            ensure!(found.guard.is_none(), "after {damage:?} the guard is taken for whole");
            ensure!(found.table == table, "after {damage:?}: {found:?}");
        }
        replace(&mk_guard()).await?;
        let listing = netns.sh("nft -a list chain inet warren in")?;
        let handle = listing.lines().find(|line| line.contains("ip saddr @remote_pods4"));
        let handle = handle.and_then(|line| line.rsplit(' ').next()).context("no handle of the rule")?;
        netns.nft(&format!(
            "replace rule inet warren in handle {handle} ip saddr @remote_pods4 counter accept"
        ))?;
        let found = guard::find(&Numbers::default()).await?;
        ensure!(found.guard.is_none(), "a replaced rule is taken for the guard's");
        ensure!(found.sets.remote_pods == mk_guard().remote_pods, "what is guarded is forgotten: {found:?}");
        replace(&mk_guard()).await?;
        netns.nft("delete element inet warren remote_pods4 { 10.244.2.0/24 }")?;
        let found =
            guard::find(&Numbers::default()).await?.guard.context("a missing element is no broken guard")?;
        ensure!(found.remote_pods == &mk_guard().remote_pods - &nets(&["10.244.2.0/24"]));
        Ok(())
    })
}

fn guard_counters() -> Result<()> {
    within(async |_| {
        let counters = GuardCounters { out_pod: 1, out_node: 2, in_pod: 3, in_node: 4 };
        guard::apply(&Action::ReplaceGuard(mk_guard()), &Numbers::default(), counters).await?;
        ensure!(guard::find(&Numbers::default()).await?.counters == counters);
        Ok(())
    })
}

fn guard_size() -> Result<()> {
    within(async |_| {
        let remote = |n: u32| IpNet::new((0x0a00_0000 | n << 8).to_be_bytes().into(), 24);
        let guard = Guard { remote_pods: (0..5000).map(remote).collect::<Result<_, _>>()?, ..mk_guard() };
        let start = std::time::Instant::now();
        replace(&guard).await?;
        let written = start.elapsed();
        ensure!(guard::find(&Numbers::default()).await?.guard.as_ref() == Some(&guard));
        println!("5000 networks: written in {written:?}, read back in {:?}", start.elapsed() - written);
        Ok(())
    })
}

fn mk_route(destination: &str, kind: RouteKind) -> Route {
    let metric = match kind {
        RouteKind::Tunnel { .. } => names::TUNNEL_METRIC,
        RouteKind::Unreachable | RouteKind::Foreign => names::UNREACHABLE_METRIC,
    };
    let destination = destination.parse().expect("a network in a test");
    Route { table: names::PODS_TABLE, destination, metric, kind }
}

fn through(source: Option<&str>) -> RouteKind {
    over(&["warren-a0"], source, None)
}

fn over(lanes: &[&str], source: Option<&str>, mtu: Option<u32>) -> RouteKind {
    let source = source.map(|source| source.parse().expect("an address in a test"));
    RouteKind::Tunnel { interfaces: lanes.iter().copied().map(Into::into).collect(), source, mtu }
}

const LANES: &[&str] = &["warren-a0", "warren-a1", "warren-a2"];

const ADDRESSES: &str = "link add warren-a0 type bridge
link set warren-a0 up
link add warren-a1 type bridge
link set warren-a1 up
link add warren-a2 type bridge
link set warren-a2 up
address add 10.244.1.0/32 dev warren-a0
address add fd00:1::/128 dev warren-a0 nodad";

fn routing_round_trip() -> Result<()> {
    within(async |netns| {
        ip(netns, ADDRESSES)?;
        let kernel = Kernel::open(Numbers::default())?;
        let routes: BTreeSet<Route> = [
            mk_route("10.244.2.0/24", through(Some("10.244.1.0"))),
            mk_route("10.244.2.0/24", RouteKind::Unreachable),
            mk_route("fd00:2::/64", through(Some("fd00:1::"))),
            mk_route("fd00:2::/64", RouteKind::Unreachable),
            Route { table: names::NODES_TABLE, ..mk_route("192.0.2.2/32", through(None)) },
            Route { table: names::NODES_TABLE, ..mk_route("192.0.2.2/32", RouteKind::Unreachable) },
            Route { table: names::NODES_TABLE, ..mk_route("fd77::2/128", through(None)) },
            mk_route("10.244.3.0/24", over(&LANES[..1], None, Some(1340))),
            mk_route("fd00:3::/64", over(&LANES[..1], None, Some(1320))),
            mk_route("10.244.4.0/24", over(LANES, Some("10.244.1.0"), Some(1340))),
            mk_route("fd00:4::/64", over(LANES, Some("fd00:1::"), Some(1340))),
            Route { table: names::HOSTS_TABLE, ..mk_route("192.0.2.2/32", over(&LANES[1..], None, None)) },
            Route { table: names::HOSTS_TABLE, ..mk_route("fd77::2/128", over(&LANES[1..], None, None)) },
        ]
        .into();
        let net = |net: &str| -> Option<IpNet> { Some(net.parse().expect("a network in a test")) };
        let nodes = |family| Rule::new(family, names::NODES_RULE, names::NODES_TABLE);
        let exempt = |family| Rule::new(family, names::EXEMPT_RULE, names::MAIN_TABLE);
        let hosts = |family| {
            let rule = Rule::new(family, names::HOSTS_RULE, names::HOSTS_TABLE);
            Rule { unmarked: Some(names::MARK), ..rule }
        };
        let (to, from) = (Some(Port::Destination(6443)), Some(Port::Source(6443)));
        let rules = [
            Rule::new(Family::V4, names::PODS_RULE, names::PODS_TABLE),
            Rule { source: net("10.244.1.0/24"), ..nodes(Family::V4) },
            Rule { destination: net("192.0.2.9/32"), port: to, ..exempt(Family::V4) },
            hosts(Family::V4),
            Rule::new(Family::V6, names::PODS_RULE, names::PODS_TABLE),
            Rule { source: net("fd00:1::/64"), ..nodes(Family::V6) },
            Rule { source: net("fd77::9/128"), port: from, ..exempt(Family::V6) },
            hosts(Family::V6),
        ];
        ensure!(kernel.view().await?.routes.is_empty());
        for route in &routes {
            kernel.apply(&Action::AddRoute(route.clone()))?;
        }
        for rule in &rules {
            kernel.apply(&Action::AddRule(rule.clone()))?;
        }
        ip(netns, "rule add priority 77 lookup 5180")?;
        let view = kernel.view().await?;
        ensure!(view.routes == routes, "routes read back as {:?}", view.routes);
        ensure!(view.rules == rules, "rules read back as {:?}", view.rules);
        // Removing is repeatable: what is gone is gone.
        for _ in 0..2 {
            for route in &routes {
                kernel.apply(&Action::RemoveRoute(route.clone()))?;
            }
            for rule in &rules {
                kernel.apply(&Action::RemoveRule(rule.clone()))?;
            }
        }
        let view = kernel.view().await?;
        ensure!(view.routes.is_empty() && view.rules.is_empty(), "{view:?}");
        ensure!(netns.sh("ip rule show priority 77")?.contains("5180"), "somebody else's rule is gone");
        Ok(())
    })
}

fn addresses_round_trip() -> Result<()> {
    within(async |netns| {
        // The tunnel's own kind: the addresses of others are not looked at.
        ip(netns, "tuntap add dev warren-a0 mode tun\nlink set warren-a0 up")?;
        let kernel = Kernel::open(Numbers::default())?;
        let addresses: BTreeSet<IpAddr> = ["10.244.1.0".parse()?, "fd00:1::".parse()?].into();
        let found = async || {
            let links = kernel.view().await?.links;
            Ok::<_, anyhow::Error>(links.get("warren-a0").context("no interface")?.addresses.clone())
        };
        let interface: Arc<str> = "warren-a0".into();
        for _ in 0..2 {
            for address in addresses.iter().copied() {
                kernel.apply(&Action::AddAddress { interface: interface.clone(), address })?;
            }
            ensure!(found().await? == addresses, "they read back as {:?}", found().await?);
        }
        let shown = netns.sh("ip -oneline address show dev warren-a0 scope global")?;
        ensure!(shown.contains("10.244.1.0/32") && shown.contains("fd00:1::/128"), "{shown}");
        ensure!(!shown.contains("tentative"), "nobody is to be asked whether it is taken: {shown}");
        for _ in 0..2 {
            for address in addresses.iter().copied() {
                kernel.apply(&Action::RemoveAddress { interface: interface.clone(), address })?;
            }
            ensure!(found().await?.is_empty(), "still there: {:?}", found().await?);
        }
        // A rule whose acknowledgement was lost is added again, and stands twice until the next look.
        let rule = Rule::new(Family::V4, names::PODS_RULE, names::PODS_TABLE);
        for count in [1, 2] {
            kernel.apply(&Action::AddRule(rule.clone()))?;
            let rules = kernel.view().await?.rules;
            ensure!(rules == vec![rule.clone(); count], "{rules:?}");
        }
        kernel.apply(&Action::RemoveRule(rule.clone()))?;
        ensure!(kernel.view().await?.rules == [rule], "not one of two is removed");
        Ok(())
    })
}

fn routing_conflicts() -> Result<()> {
    within(async |netns| {
        ip(netns, ADDRESSES)?;
        let kernel = Kernel::open(Numbers::default())?;
        for (destination, source) in [("10.244.2.0/24", "10.244.1.0"), ("fd00:2::/64", "fd00:1::")] {
            let ways = [
                over(&LANES[..1], None, None),
                over(&LANES[..1], Some(source), None),
                over(LANES, Some(source), None),
                over(&LANES[1..], Some(source), Some(1340)),
                over(&LANES[2..], Some(source), Some(1340)),
                over(&LANES[..2], Some(source), None),
                over(&LANES[..1], Some(source), None),
            ];
            for way in &ways {
                let route = mk_route(destination, way.clone());
                kernel.apply(&Action::AddRoute(route.clone()))?;
                let view = kernel.view().await?;
                ensure!(view.routes == [route.clone()].into(), "{route} reads back as {:?}", view.routes);
            }
            kernel.apply(&Action::RemoveRoute(mk_route(destination, ways[ways.len() - 1].clone())))?;
        }
        ip(netns, "route add 10.9.0.0/16 dev warren-a0 table 5180 metric 3")?;
        let foreign = kernel.view().await?.routes;
        ensure!(foreign.len() == 1, "a foreign route in Warren's table is not seen");
        for route in foreign {
            kernel.apply(&Action::RemoveRoute(route))?;
        }
        ensure!(kernel.view().await?.routes.is_empty(), "the foreign route is still there");
        Ok(())
    })
}

fn changes_are_noticed() -> Result<()> {
    within(async |netns| {
        ip(netns, ADDRESSES)?;
        let changed = Arc::new(Notify::new());
        let (watch, notify) = (Watch::subscribe()?, changed.clone());
        tokio::spawn(async move { watch.run(&notify).await });
        for change in [
            "link set warren-a0 mtu 1300",
            "link set warren-a0 down",
            "link set warren-a0 up",
            "address del 10.244.1.0/32 dev warren-a0",
            "address add fd00:1::5/128 dev warren-a0 nodad",
            "route add 10.244.2.0/24 dev warren-a0 table 5180",
            "-6 route add fd00:2::/64 dev warren-a0 table 5180",
            "route flush table 5180",
            "rule add priority 5180 lookup 5180",
            "-6 rule add priority 5180 lookup 5180",
            "-6 rule del priority 5180",
            "link del warren-a0",
            "nft",
        ] {
            quiet(&changed).await;
            if change == "nft" {
                netns.nft("add table inet warren")?
            } else {
                ip(netns, change)?
            }
            tokio::time::timeout(Duration::from_secs(2), changed.notified())
                .await
                .with_context(|| format!("{change:?} was not noticed"))?;
        }
        Ok(())
    })
}

/// Until the kernel has nothing more to say of what went before.
async fn quiet(changed: &Notify) {
    while tokio::time::timeout(Duration::from_millis(100), changed.notified()).await.is_ok() {}
}
