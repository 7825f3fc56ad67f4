//! The text form against itself and against nonsense.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixListener;

use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::*;

fn secret() -> impl Strategy<Value = SecretKey> {
    any::<[u8; 32]>().prop_map(Zeroizing::new)
}

fn real_secret() -> impl Strategy<Value = SecretKey> {
    secret().prop_filter("all zeros mean none", |key| **key != [0; 32])
}

fn net() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128u8).prop_map(|(address, length)| {
        let length = if address.is_ipv4() { length % 33 } else { length };
        IpNet::new(address, length).expect("the length fits").trunc()
    })
}

/// Flow labels are no part of an endpoint's text.
fn endpoint() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port))
}

prop_compose! {
    fn peer_update()(
        public_key in any::<[u8; 32]>(),
        flags in any::<[bool; 3]>(),
        preshared_key in of(secret()),
        endpoint in of(endpoint()),
        persistent_keepalive in any::<Option<u16>>(),
        lanes in of(1..=u16::MAX),
        allowed_ips in vec((net(), any::<bool>()), 0..5),
    ) -> PeerUpdate {
        let [remove, update_only, replace_allowed_ips] = flags;
        let allowed_ips = allowed_ips.into_iter().map(|(net, remove)| AllowedIpChange { net, remove }).collect();
        PeerUpdate {
            public_key, remove, update_only, preshared_key, endpoint, persistent_keepalive, lanes,
            replace_allowed_ips, allowed_ips,
        }
    }
}

prop_compose! {
    fn update()(
        private_key in of(secret()),
        listen_port in any::<Option<u16>>(),
        fwmark in any::<Option<u32>>(),
        replace_peers in any::<bool>(),
        peers in vec(peer_update(), 0..5),
    ) -> DeviceUpdate {
        DeviceUpdate { private_key, listen_port, fwmark, replace_peers, peers }
    }
}

prop_compose! {
    fn peer_state()(
        public_key in any::<[u8; 32]>(),
        preshared_key in of(real_secret()),
        endpoint in of(endpoint()),
        handshake in of((1..u64::MAX, 0..1_000_000_000u32)),
        rx_bytes in any::<u64>(),
        tx_bytes in any::<u64>(),
        persistent_keepalive in any::<u16>(),
        lanes in 1..=u16::MAX,
        allowed_ips in vec(net(), 0..5),
    ) -> PeerState {
        let last_handshake = handshake.map(|(seconds, nanos)| Duration::new(seconds, nanos));
        PeerState {
            public_key, preshared_key, endpoint, last_handshake, rx_bytes, tx_bytes, persistent_keepalive, lanes,
            allowed_ips,
        }
    }
}

prop_compose! {
    fn state()(
        private_key in of(real_secret()),
        listen_port in any::<u16>(),
        fwmark in any::<u32>(),
        dropped in btree_map("[a-z_]{1,20}", any::<u64>(), 0..3),
        fallbacks in btree_map("[a-z_]{1,20}", any::<u64>(), 0..3),
        peers in vec(peer_state(), 0..5),
    ) -> DeviceState {
        DeviceState { private_key, listen_port, fwmark, dropped, fallbacks, peers }
    }
}

/// Lines that are nearly right: known keys with any values, in any order.
fn near_miss() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "set",
        "get",
        "private_key",
        "listen_port",
        "fwmark",
        "replace_peers",
        "public_key",
        "remove",
        "update_only",
        "preshared_key",
        "endpoint",
        "persistent_keepalive_interval",
        "warren_lanes",
        "warren_dropped_no_peer",
        "replace_allowed_ips",
        "allowed_ip",
        "protocol_version",
        "errno",
        "last_handshake_time_sec",
        "last_handshake_time_nsec",
        "",
    ]);
    let value = prop_oneof![
        Just("true".to_owned()),
        Just("18446744073709551615".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("-2147483648".to_owned()),
        Just("00".repeat(32)),
        "[-+]?[0-9]{0,12}",
        "[0-9a-fA-F]{62,66}",
        "[-0-9a-f.:%\\[\\]/]{0,30}",
        ".{0,20}",
    ];
    vec((key, value), 0..12)
        .prop_map(|lines| lines.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect())
}

proptest! {
    #[test]
    fn an_update_survives_its_text(update in update()) {
        prop_assert_eq!(DeviceUpdate::parse(&update.encode()).unwrap(), update);
    }

    #[test]
    fn a_state_survives_its_text(state in state()) {
        prop_assert_eq!(DeviceState::parse(&state.encode()).unwrap(), state);
    }

    #[test]
    fn the_buffer_never_grows(update in update(), state in state()) {
        // Growth would leave keys in freed memory.
        let update_bound = 256 + 512 * update.peers.len()
            + 64 * update.peers.iter().map(|peer| peer.allowed_ips.len()).sum::<usize>();
        prop_assert!(update.encode().len() <= update_bound);
        let state_bound = 256 + 80 * (state.dropped.len() + state.fallbacks.len()) + 512 * state.peers.len()
            + 64 * state.peers.iter().map(|peer| peer.allowed_ips.len()).sum::<usize>();
        prop_assert!(state.encode().len() <= state_bound);
    }

    #[test]
    fn nonsense_never_panics(text in prop_oneof![any::<String>(), near_miss()]) {
        let _ = DeviceUpdate::parse(&text);
        let _ = DeviceState::parse(&text);
    }

    #[test]
    fn blocks_are_cut_however_they_arrive(texts in vec("([a-z=]{1,8}\n){1,4}\n", 1..5), size in 1..20usize) {
        let mut stream = SecretText::default();
        let (mut scanned, mut found) = (0, Vec::new());
        for chunk in texts.concat().as_bytes().chunks(size) {
            stream.extend(chunk);
            while let Framed::Block(block) = stream.take_block(&mut scanned) {
                found.push(block.to_string());
            }
        }
        prop_assert_eq!(found, texts);
    }
}

const KEY: &str = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";

/// The request of the protocol's own page, shortened.
#[test]
fn reads_what_wg_writes() {
    let text = format!(
        "set=1\nprivate_key={KEY}\nfwmark=0\nlisten_port=12912\nreplace_peers=true\npublic_key={KEY}\n\
         preshared_key={KEY}\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\n\
         endpoint=[abcd:23::33%2]:51820\npublic_key={KEY}\nremove=true\n\n"
    );
    let update = DeviceUpdate::parse(&text).unwrap();
    assert_eq!(update.listen_port, Some(12912));
    assert!(update.replace_peers);
    let [first, second] = update.peers.as_slice() else { panic!("two peers") };
    assert_eq!(first.endpoint.unwrap().to_string(), "[abcd:23::33%2]:51820");
    assert_eq!(first.allowed_ips, [AllowedIpChange::add("192.168.4.4/32".parse().unwrap())]);
    assert!(second.remove);
}

#[test]
fn names_the_line_but_never_the_value() {
    let cases = [
        ("listen_port=99999\n\n", 22),
        ("listen_port=+1\n\n", 22),
        ("fwmark=-1\n\n", 22),
        ("colour=red\n\n", 22),
        ("replace_peers=false\n\n", 22),
        ("endpoint=1.2.3.4:5\n\n", 22),
        ("private_key=secretsecret\n\n", 22),
        ("secretsecret\n\n", 71),
        ("SECRETSECRET=1\n\n", 22),
        ("fwmark=1\n\nfwmark=secretsecret\n", 71),
    ];
    for (text, errno) in cases {
        let error = DeviceUpdate::parse(text).unwrap_err();
        assert_eq!(error.errno(), errno, "{text:?}");
        assert!(!format!("{error} {error:?}").to_lowercase().contains("secret"), "{error}");
    }
    let peer_lines = [
        "listen_port=1",
        "allowed_ip=1.2.3.4",
        "allowed_ip=1.2.3.4/33",
        "endpoint=host:1",
        "protocol_version=2",
        "warren_lanes=0",
        "warren_lanes=65536",
    ];
    for line in peer_lines {
        let error = DeviceUpdate::parse(&format!("public_key={KEY}\n{line}\n\n")).unwrap_err();
        assert_eq!(error.errno(), 22, "{line}");
    }
}

#[test]
fn an_interface_name_is_a_zone() {
    let text = format!("public_key={KEY}\nendpoint=[fe80::1%lo]:1\n\n");
    let update = DeviceUpdate::parse(&text).unwrap();
    let Some(SocketAddr::V6(endpoint)) = update.peers[0].endpoint else { panic!("no IPv6 endpoint") };
    assert_ne!(endpoint.scope_id(), 0);
}

#[test]
fn errno_decides_whatever_its_sign() {
    assert_eq!(DeviceState::parse("errno=0\n\n"), Ok(DeviceState::default()));
    assert_eq!(DeviceState::parse("errno=22\n\n"), Err(UapiError::Refused(22)));
    assert_eq!(DeviceState::parse("errno=-98\n\n"), Err(UapiError::Refused(98)));
    assert_eq!(DeviceState::parse("listen_port=1\n\n"), Err(UapiError::NoErrno));
}

#[test]
fn debug_shows_no_secret() {
    let mut peer = PeerUpdate::new([1; 32]);
    peer.preshared_key = Some(Zeroizing::new([0xab; 32]));
    let update = DeviceUpdate {
        private_key: Some(Zeroizing::new([0xab; 32])),
        peers: vec![peer],
        ..Default::default()
    };
    let text = format!("{update:?}");
    assert!(text.contains("<secret>") && !text.contains("171") && !text.contains("abab"), "{text}");
}

#[test]
fn a_silent_program_costs_the_timeout_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let start = std::time::Instant::now();
    let error = client::get(&path, Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, client::ClientError::Talk { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
    let error = client::get(&dir.path().join("none.sock"), Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, client::ClientError::Connect { .. }), "{error}");
}
