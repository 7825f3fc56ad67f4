//! The store, input by input.

use super::*;
use warren_api::annotations::ENCRYPT_HOST;
use warren_api::node::{Address, Spec, Status, Taint};

const NOW: fn() -> Instant = Instant::now;

fn metadata(name: &str, uid: &str, version: u64, announcement: Option<&str>) -> Metadata {
    let annotations = announcement.map(|text| (ANNOUNCEMENT.to_owned(), text.to_owned()));
    Metadata {
        name: name.into(),
        uid: uid.into(),
        resource_version: version.to_string(),
        annotations: annotations.into_iter().collect(),
        ..Metadata::default()
    }
}

fn node(metadata: Metadata) -> Node {
    let spec = Spec { pod_cidrs: vec!["10.0.0.0/24".into()], ..Spec::default() };
    let address = Address { kind: "InternalIP".into(), address: "192.0.2.1".into() };
    Node { metadata, spec, status: Status { addresses: vec![address] } }
}

/// The own Node, and `a` with an announcement, at version 10.
fn mk_store() -> Store {
    let mut store = Store::new("own".into());
    let nodes = [metadata("own", "o", 5, None), metadata("a", "u", 6, Some("x"))].map(node);
    store.listed(nodes, "10".into(), NOW());
    store
}

fn announces(store: &Store, name: &str) -> bool {
    store.nodes[name].record.announcement.is_some()
}

#[test]
fn before_the_first_list_nothing_is_known() {
    assert_eq!(Store::new("own".into()).records(), None);
    assert_eq!(mk_store().records().unwrap().len(), 2);
    assert_eq!(mk_store().own().unwrap().uid, "o");
}

#[test]
fn a_heartbeat_changes_nothing_and_asks_nothing() {
    let mut store = mk_store();
    let effect = store.seen(&metadata("a", "u", 11, Some("x")), NOW());
    assert_eq!((effect, store.version()), (Effect::default(), "11"));
}

#[test]
fn a_bookmark_moves_the_watch_on_and_never_back() {
    let mut store = mk_store();
    assert!(store.bookmark("20".into()) && store.bookmark("20".into()));
    assert!(!store.bookmark("3".into()));
    store.forget_version();
    assert_eq!(store.records().unwrap().len(), 2, "what is known holds until there is a new list");
}

#[test]
fn a_new_announcement_is_believed_with_the_answer_and_not_before() {
    let mut store = mk_store();
    let now = NOW();
    let changed = metadata("a", "u", 11, Some("y"));
    assert_eq!(store.seen(&changed, now), Effect { changed: false, ask: Some(now) });
    assert_eq!(store.nodes["a"].text.as_deref(), Some("x"));
    assert_eq!(store.seen(&metadata("a", "u", 12, Some("y")), now).ask, None, "it is under way");
    assert!(!store.got(&node(changed), now), "an answer older than what was seen since");
    assert_eq!(store.wanted("a"), Some(12));
    store.got(&node(metadata("a", "u", 12, Some("y"))), now);
    assert_eq!((store.wanted("a"), store.nodes["a"].text.as_deref()), (None, Some("y")));
    assert!(!store.got(&node(metadata("a", "u", 13, Some("z"))), now), "nobody asked");
}

#[test]
fn what_is_taken_back_is_gone_at_once_and_no_late_answer_brings_it_back() {
    let mut store = mk_store();
    let now = NOW();
    store.seen(&metadata("a", "u", 11, Some("y")), now);
    assert!(store.seen(&metadata("a", "u", 12, None), now).changed);
    assert!(!announces(&store, "a"));
    assert!(!store.got(&node(metadata("a", "u", 11, Some("y"))), now));
    assert!(!announces(&store, "a"));
}

#[test]
fn an_operators_quarantine_holds_at_once() {
    let mut store = mk_store();
    let mut quarantined = metadata("a", "u", 11, Some("x"));
    quarantined.annotations.insert(QUARANTINE.into(), "lost".into());
    assert_eq!(store.seen(&quarantined, NOW()), Effect { changed: true, ask: None });
    assert_eq!(store.nodes["a"].record.quarantine.as_deref(), Some("lost"));
}

#[test]
fn an_operators_labels_hold_at_once() {
    let mut store = mk_store();
    for (version, value) in [(11, "false"), (12, "true")] {
        let mut labelled = metadata("a", "u", version, Some("x"));
        labelled.labels.insert(ENCRYPT_HOST.into(), value.into());
        assert_eq!(store.seen(&labelled, NOW()), Effect { changed: true, ask: None }, "{value}");
        assert_eq!(store.nodes["a"].record.host_left_out, value == "false");
        assert_eq!(store.seen(&labelled, NOW()), Effect::default(), "{value}, once more");
    }
}

#[test]
fn a_node_made_anew_is_asked_for_and_its_predecessors_end_does_not_take_it_along() {
    let mut store = mk_store();
    let now = NOW();
    assert!(store.deleted(&metadata("a", "u", 11, Some("x"))).changed);
    assert_eq!(store.nodes.len(), 1);
    assert_eq!(store.seen(&metadata("a", "v", 12, None), now).ask, Some(now));
    assert!(store.got(&node(metadata("a", "v", 12, None)), now));
    assert_eq!(store.deleted(&metadata("a", "u", 13, Some("x"))), Effect::default(), "the watch lags behind");
    assert_eq!(store.uid("a"), Some("v"));
}

#[test]
fn a_deleted_node_is_not_brought_back_by_a_late_answer() {
    let mut store = mk_store();
    let now = NOW();
    store.seen(&metadata("a", "u", 11, Some("y")), now);
    store.deleted(&metadata("a", "u", 12, Some("y")));
    assert!(!store.got(&node(metadata("a", "u", 11, Some("y"))), now));
    assert_eq!((store.nodes.len(), store.wanted("a")), (1, None));
}

#[test]
fn a_node_without_pod_cidrs_or_addresses_is_asked_for_ever_more_rarely() {
    ever_more_rarely(|node| node.spec = Spec::default());
    ever_more_rarely(|node| node.status = Status::default());
}

fn ever_more_rarely(impoverish: fn(&mut Node)) {
    let mut store = mk_store();
    let start = NOW();
    let poor = |version| {
        let mut node = node(metadata("b", "p", version, None));
        impoverish(&mut node);
        node
    };
    let mut asked = Vec::new();
    for second in 0..3600 {
        let now = start + Duration::from_secs(second);
        let effect = store.seen(&metadata("b", "p", 100 + second, None), now);
        if effect.ask.is_some() {
            asked.push(second);
        }
        if store.asking.get("b").is_some_and(|(_, at)| *at <= now) {
            store.got(&poor(100 + second), now);
        }
    }
    assert!(asked[..3] == [0, 1, 2] && asked.len() < 25, "{asked:?}");
    // An announcement is worth a question at any time.
    let now = start + Duration::from_secs(3600);
    assert_eq!(store.seen(&metadata("b", "p", 9000, Some("x")), now).ask, Some(now));
}

#[test]
fn what_was_missed_is_found_by_comparing_metadata() {
    let mut store = mk_store();
    let now = NOW();
    let all = vec![metadata("own", "o", 5, None), metadata("b", "w", 20, Some("b"))];
    let (changed, ask) = store.relisted(all, "30".into(), now);
    let names: Vec<&str> = ask.iter().map(|metadata| metadata.name.as_str()).collect();
    assert!(changed && !store.nodes.contains_key("a"), "a is gone");
    assert_eq!((names, store.version()), (vec!["own", "b"], "30"));
}

#[test]
fn the_own_annotations_are_known_at_once() {
    let mut store = mk_store();
    assert!(store.seen(&metadata("own", "o", 11, Some("garbled")), NOW()).changed);
    assert_eq!(store.own().unwrap().annotations[ANNOUNCEMENT], "garbled");
    let stale = node(metadata("own", "o", 10, Some("mine")));
    assert!(!store.written(&stale, NOW()), "the watch has seen what came after");
    assert_eq!(store.own().unwrap().annotations[ANNOUNCEMENT], "garbled");
    let mut written = node(metadata("own", "o", 12, Some("mine")));
    written.spec.taints = ["a", NOT_READY, "b", NOT_READY].map(|key| Taint { key: key.into() }).to_vec();
    assert!(store.written(&written, NOW()));
    assert_eq!(store.own().unwrap().tainted, [1, 3]);
    store.deleted(&metadata("own", "o", 14, None));
    assert!(!store.written(&node(metadata("own", "o", 13, Some("mine"))), NOW()), "it is gone");
    assert_eq!((store.own(), store.uid("own")), (None, None));
}
