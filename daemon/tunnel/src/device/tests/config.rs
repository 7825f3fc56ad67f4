//! Configuration, on devices with and without traffic.

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_set_can_be_read() {
    let now = Instant::now();
    let node = Node::new("192.0.2.1:1", now, 10);
    let mut peer = peer_with([7; 32], Some("[2001:db8::1]:51820".parse().unwrap()), &["10.1.2.3/24", "::/0"]);
    peer.preshared_key = Some(Zeroizing::new([9; 32]));
    peer.persistent_keepalive = Some(25);
    node.apply_peer(peer, now);
    let state = node.peer([7; 32]);
    let nets: Vec<_> = state.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.1.2.0/24", "::/0"]);
    assert_eq!(state.preshared_key, Some(Zeroizing::new([9; 32])));
    assert_eq!(state.persistent_keepalive, 25);
    assert_eq!(state.endpoint, Some("[2001:db8::1]:51820".parse().unwrap()));
    assert_eq!(state.last_handshake, None);
}

#[test]
fn update_only_and_remove_create_nothing() {
    let now = Instant::now();
    let node = Node::new("192.0.2.1:1", now, 10);
    let mut update = PeerUpdate::new([7; 32]);
    update.update_only = true;
    node.apply_peer(update.clone(), now);
    update.update_only = false;
    update.remove = true;
    node.apply_peer(update, now);
    assert!(node.device.state().peers.is_empty());
}

#[test]
fn an_allowed_ip_belongs_to_the_last_it_was_given_to() {
    let now = Instant::now();
    let node = Node::new("192.0.2.1:1", now, 10);
    node.apply_peer(peer_with([1; 32], None, &["10.0.0.0/8", "10.1.0.0/16"]), now);
    node.apply_peer(peer_with([2; 32], None, &["10.1.0.0/16"]), now);
    let nets = |key| node.peer(key).allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((nets([1; 32]), nets([2; 32])), (vec!["10.0.0.0/8".into()], vec!["10.1.0.0/16".into()]));
    // Only the owner's can be removed.
    let mut update = PeerUpdate::new([1; 32]);
    update.allowed_ips = vec![AllowedIpChange::remove("10.1.0.0/16".parse().unwrap())];
    node.apply_peer(update.clone(), now);
    assert_eq!(nets([2; 32]).len(), 1);
    update.public_key = [2; 32];
    node.apply_peer(update, now);
    assert!(nets([2; 32]).is_empty());
    let mut update = peer_with([1; 32], None, &["fd00::/8"]);
    update.replace_allowed_ips = true;
    node.apply_peer(update, now);
    assert_eq!(nets([1; 32]), ["fd00::/8"]);
}

#[test]
fn a_live_peer_keeps_its_session_through_any_change() {
    let mut wire = Wire::new();
    assert!(wire.both_ways());
    let (key, now, address) = (wire.b.public(), wire.now, wire.b.address);
    for update in [
        peer_with(key, Some(address), &[]),
        peer_with(key, None, &["10.0.0.7/32"]),
        PeerUpdate { persistent_keepalive: Some(5), ..PeerUpdate::new(key) },
        PeerUpdate { replace_allowed_ips: true, ..peer_with(key, None, &["10.0.0.0/24"]) },
        peer_with([3; 32], None, &["10.3.0.0/24"]),
        PeerUpdate { remove: true, ..PeerUpdate::new([3; 32]) },
        PeerUpdate { preshared_key: Some(Zeroizing::new([0; 32])), ..PeerUpdate::new(key) },
    ] {
        wire.a.apply_peer(update, now);
        assert!(wire.both_ways());
    }
    assert_eq!(wire.count(INITIATION), 1);
}

#[test]
fn a_removed_peer_is_gone_and_can_return() {
    let mut wire = Wire::new();
    for round in 1..4 {
        assert!(wire.both_ways());
        let key = wire.b.public();
        let late = wire.encrypt(Side::B, &b_to_a(5)).remove(0);
        wire.a.apply_peer(PeerUpdate { remove: true, ..PeerUpdate::new(key) }, wire.now);
        wire.a.delivered.clear();
        assert!(wire.receive(Side::A, late.from, &late.bytes).is_empty());
        assert!(wire.a.delivered.is_empty());
        assert!(wire.encrypt(Side::A, &a_to_b(5)).is_empty());
        wire.a.apply_peer(peer_with(key, Some(wire.b.address), &["10.0.0.2/32"]), wire.now);
        wire.pass(Duration::from_secs(1));
        assert!(wire.both_ways(), "round {round}");
    }
    let none = DeviceUpdate { replace_peers: true, ..DeviceUpdate::default() };
    wire.a.apply(&none, wire.now);
    assert!(wire.a.device.state().peers.is_empty());
    assert!(wire.encrypt(Side::A, &a_to_b(5)).is_empty());
}

/// 20,000 networks over 200 peers: set, looked up, replaced and removed in times that a human does not
/// notice. The bounds are ten times what a slow machine needs.
#[test]
fn twenty_thousand_allowed_ips() {
    let now = Instant::now();
    let node = Node::new("192.0.2.1:1", now, 10);
    let key = |peer: u16| {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&peer.to_be_bytes());
        key[31] = 9;
        key
    };
    let peers = (0..200u16)
        .map(|peer| {
            let mut update = PeerUpdate::new(key(peer));
            update.replace_allowed_ips = true;
            update.allowed_ips = (0..50u16)
                .flat_map(|host| {
                    let [high, low] = (peer * 50 + host).to_be_bytes();
                    [format!("10.{high}.{low}.0/24"), format!("fd00:0:{high:x}:{low:x}::/64")]
                })
                .map(|net| AllowedIpChange::add(net.parse().unwrap()))
                .collect();
            update
        })
        .collect();
    let update = DeviceUpdate { peers, ..DeviceUpdate::default() };
    let text = update.encode();
    let update = DeviceUpdate::parse(&text).unwrap();
    let start = Instant::now();
    node.apply(&update, now);
    let first = start.elapsed();
    node.apply(&update, now);
    let again = start.elapsed() - first;
    let state = node.device.state();
    assert_eq!(state.peers.iter().map(|peer| peer.allowed_ips.len()).sum::<usize>(), 20_000);
    let start = Instant::now();
    let mut out = Datagrams::new(8);
    let lane = node.device.lane(0, Clock::system());
    for _ in 0..10 {
        for net in 0..10_000u16 {
            let [high, low] = net.to_be_bytes();
            let bytes = packet("10.0.0.1", &format!("10.{high}.{low}.9"), 0);
            with_segments(&bytes, |segments| lane.packets(segments, &mut out));
        }
    }
    let lookups = start.elapsed();
    assert_eq!(node.dropped(Drop::NoEndpoint), 100_000, "each found its peer");
    println!("20,000 allowed IPs: set {first:?}, replaced {again:?}, 100,000 lookups {lookups:?}");
    assert!(first + again < Duration::from_secs(2) && lookups < Duration::from_secs(2));
}

proptest! {
    /// The table against the obvious one: a list, searched for the longest match.
    #[test]
    fn the_longest_match_is_that_of_a_list(
        steps in prop::collection::vec((0..3u8, 0..4u8, any::<u8>(), 0..=32u8), 1..60),
        probes in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let now = Instant::now();
        let node = Node::new("192.0.2.1:1", now, 10);
        let mut list: Vec<(ipnet::IpNet, [u8; 32])> = Vec::new();
        for (action, peer, byte, length) in steps {
            let net = ipnet::IpNet::new(IpAddr::from([10, byte, byte, byte]), length).unwrap().trunc();
            let key = [peer + 1; 32];
            let mut update = PeerUpdate::new(key);
            match action {
                0 => {
                    update.allowed_ips.push(AllowedIpChange::add(net));
                    list.retain(|(other, _)| *other != net);
                    list.push((net, key));
                }
                1 => {
                    update.allowed_ips.push(AllowedIpChange::remove(net));
                    list.retain(|entry| *entry != (net, key));
                }
                _ => {
                    update.remove = true;
                    list.retain(|(_, owner)| *owner != key);
                }
            }
            node.apply_peer(update, now);
        }
        let table = node.device.read();
        for byte in probes {
            let address = IpAddr::from([10, byte, byte, byte]);
            let expected = list.iter().filter(|(net, _)| net.contains(&address))
                .max_by_key(|(net, _)| net.prefix_len()).map(|(_, key)| *key);
            prop_assert_eq!(table.allowed.lookup(address).map(|peer| peer.public_key), expected);
        }
        drop(table);
        let mut listed: Vec<_> = node.device.state().peers.into_iter()
            .flat_map(|peer| peer.allowed_ips.into_iter().map(move |net| (net, peer.public_key))).collect();
        listed.sort();
        list.sort();
        prop_assert_eq!(listed, list);
    }
}
