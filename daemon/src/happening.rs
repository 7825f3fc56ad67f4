//! What a cluster's operators should hear of without asking: found by comparing what is with what was.

use warren_api::Announcement;
use warren_api::status::{Enforcement, GuardCounters, Status};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// What kind of thing.
    pub kind: Kind,
    /// The node it concerns, if not the own.
    pub node: Option<String>,
    /// What there is to say, for a human.
    pub note: String,
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A node is not obeyed any more.
    NodeQuarantined,
    /// The guard dropped packets that were about to cross in the clear.
    ClearTextStopped,
    /// In permissive mode, packets crossed in the clear.
    ClearTextPassed,
    /// The node announces another key than before.
    KeyRotated,
    /// The node fell back from WireGuard in the kernel to the userspace program.
    BackendFallback,
}

impl Kind {
    /// The reason of the Event: a word in upper camel case.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NodeQuarantined => "NodeQuarantined",
            Self::ClearTextStopped => "ClearTextStopped",
            Self::ClearTextPassed => "ClearTextPassed",
            Self::KeyRotated => "KeyRotated",
            Self::BackendFallback => "BackendFallback",
        }
    }

    /// What Warren did about it.
    pub fn action(self) -> &'static str {
        match self {
            Self::NodeQuarantined => "Quarantine",
            Self::ClearTextStopped => "Drop",
            Self::ClearTextPassed => "Count",
            Self::KeyRotated | Self::BackendFallback => "Announce",
        }
    }

    /// Whether somebody should look into it.
    pub fn is_warning(self) -> bool {
        self != Self::KeyRotated
    }
}

/// What happened between two looks.
pub fn between(before: Option<&Status>, now: &Status) -> Vec<Happening> {
    let known = |node: &str| before.is_some_and(|before| before.quarantined.iter().any(|q| q.node == node));
    let news = now.quarantined.iter().filter(|quarantined| !known(&quarantined.node));
    let mut happenings: Vec<Happening> = news
        .map(|quarantined| Happening {
            kind: Kind::NodeQuarantined,
            node: Some(quarantined.node.clone()),
            note: format!("not obeyed, its pods cannot be reached: {}", quarantined.reason),
        })
        .collect();
    if let Some(why) = &now.fallback
        && before.is_none_or(|before| before.fallback.is_none())
    {
        let note = format!(
            "WireGuard in the kernel cannot be used; warren-tunnel carries the traffic, slower: {why}"
        );
        happenings.push(Happening { kind: Kind::BackendFallback, node: None, note });
    }
    // Counters start where the guard stood when the daemon came; what was before is no news.
    if let Some(before) = before.filter(|before| total(&before.guard) < total(&now.guard)) {
        happenings.push(clear_text(&before.guard, now));
    }
    happenings
}

fn clear_text(before: &GuardCounters, now: &Status) -> Happening {
    let GuardCounters { out_pod, out_node, in_pod, in_node } = now.guard;
    let more = total(&now.guard) - total(before);
    let (kind, did) = match now.enforcement {
        Enforcement::Strict => (Kind::ClearTextStopped, "stopped"),
        Enforcement::Permissive => (Kind::ClearTextPassed, "counted, and let pass,"),
    };
    let note = format!(
        "the guard {did} {more} packets in the clear; in all, out to pods {out_pod}, out to nodes {out_node}, in \
         from pods {in_pod}, in from nodes {in_node}"
    );
    Happening { kind, node: None, note }
}

fn total(counters: &GuardCounters) -> u64 {
    let GuardCounters { out_pod, out_node, in_pod, in_node } = counters;
    out_pod + out_node + in_pod + in_node
}

/// What an announcement says that the one before it did not, both as they stand on the Node.
pub fn announced(before: Option<&str>, now: Option<&str>) -> Vec<Happening> {
    let parse = |text: Option<&str>| text.and_then(|text| Announcement::parse(text).ok());
    let (Some(before), Some(now)) = (parse(before), parse(now)) else { return Vec::new() };
    // A Node made anew under the same name, or a garbled announcement, has no past.
    if before.uid != now.uid || before.node != now.node {
        return Vec::new();
    }
    let own = |kind, note| Happening { kind, node: None, note };
    let newest = |announcement: &Announcement| {
        announcement.epochs.iter().max_by_key(|key| key.epoch).map(|key| (key.epoch, key.public_key))
    };
    let mut happenings = Vec::new();
    if let (Some((_, old)), Some((epoch, new))) = (newest(&before), newest(&now))
        && old != new
    {
        let note = format!("the public key of epoch {epoch} is {new} now; before it was {old}");
        happenings.push(own(Kind::KeyRotated, note));
    }
    happenings
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::Backend;
    use warren_api::PublicKey;
    use warren_api::status::Quarantined;

    fn status(quarantined: &[&str], out_pod: u64) -> Status {
        let quarantined =
            quarantined.iter().map(|node| Quarantined { node: (*node).into(), reason: "r".into() });
        Status {
            node: "own".into(),
            public_key: PublicKey::from_bytes([7; 32]).unwrap(),
            epoch: 0,
            backend: Backend::Userspace,
            interface: String::new(),
            fallback: None,
            lanes: 1,
            spread_by_ports: None,
            mtu: 0,
            enforcement: Enforcement::Strict,
            ready: true,
            problems: vec![],
            pod_cidrs: vec![],
            endpoints: vec![],
            peers: vec![],
            quarantined: quarantined.collect(),
            waiting: vec![],
            registry: None,
            withdrawn: false,
            guard: GuardCounters { out_pod, ..GuardCounters::default() },
            tunnel: Default::default(),
        }
    }

    #[test]
    fn only_news_is_news() {
        let kinds = |before: Option<&Status>, now: &Status| -> Vec<Kind> {
            between(before, now).into_iter().map(|happening| happening.kind).collect()
        };
        let quiet = status(&[], 5);
        assert_eq!(kinds(None, &quiet), [], "what the guard counted before this daemon came");
        assert_eq!(kinds(Some(&quiet), &quiet), []);
        assert_eq!(kinds(None, &status(&["a"], 5)), [Kind::NodeQuarantined]);
        assert_eq!(kinds(Some(&status(&["a"], 5)), &status(&["a", "b"], 5)), [Kind::NodeQuarantined]);
        assert_eq!(kinds(Some(&status(&["a"], 5)), &quiet), [], "the end of a quarantine");
        assert_eq!(kinds(Some(&quiet), &status(&[], 9)), [Kind::ClearTextStopped]);
        assert_eq!(kinds(Some(&quiet), &status(&[], 0)), [], "a guard whose counters were lost");
        let permissive = Status { enforcement: Enforcement::Permissive, ..status(&[], 9) };
        assert_eq!(kinds(Some(&quiet), &permissive), [Kind::ClearTextPassed]);
        assert!(between(Some(&quiet), &permissive)[0].note.contains("4 packets"));
        let fallen = Status { fallback: Some("no module".into()), ..quiet.clone() };
        assert_eq!(kinds(None, &fallen), [Kind::BackendFallback]);
        assert_eq!(kinds(Some(&fallen), &fallen), []);
    }

    #[test]
    fn a_changed_key_is_told() {
        let text = |key: &str, backend: &str, uid: &str| {
            format!(
                r#"{{"version":1,"node":"a","uid":"{uid}","epochs":[{{"epoch":0,"publicKey":"{key}","port":1,"lanes":1}}],
                    "podCIDRs":[],"endpoints":[],"backend":"{backend}","mtu":1420}}"#
            )
        };
        let (old, new) =
            ("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
        let before = text(old, "kernel", "u");
        let kinds = |now: &str| -> Vec<Kind> {
            announced(Some(&before), Some(now)).into_iter().map(|happening| happening.kind).collect()
        };
        assert_eq!(kinds(&before), []);
        assert_eq!(kinds(&text(new, "kernel", "u")), [Kind::KeyRotated]);
        assert_eq!(kinds(&text(old, "userspace", "u")), []);
        assert_eq!(kinds(&text(new, "userspace", "v")), [], "a Node made anew");
        assert_eq!(announced(Some("garbled"), Some(&before)), []);
        assert_eq!(announced(None, Some(&before)), []);
    }
}
