//! The admission policies on the real API server: the cases that `tests/manifests` evaluates, sent as requests.
//!
//! Each is a dry run, by an administrator who impersonates whoever it is. First without the policies: what they are to
//! refuse passes, and what they are to allow is no request that the server itself would refuse. Then with them, where
//! the server has such policies at all.
//!
//! Nodes as the cases want them bear what nobody but a daemon may write. So somebody who prepares them is added to each
//! policy's conditions as one whom it does not concern; nothing else differs from what is shipped.

#[path = "../manifests/admission/cases/mod.rs"]
mod cases;
#[path = "../manifests/admission/request.rs"]
#[allow(dead_code, reason = "shared with `tests/manifests`, which uses all of it")]
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use warren_testkit::apiserver::real::{ApiServer, Client, Patch, Response};
use warren_testkit::wait;

use self::cases::{Case, Expected, cases};
use crate::kustomize::{build_with, objects};
use crate::{cluster, minor};

/// The first version that has these policies: Kubernetes 1.N.
const SINCE: u32 = 30;

/// How long the server may take until roles and policies hold: it hears of them by watches.
const TAKES_EFFECT: Duration = Duration::from_secs(60);

const NODES: &str = "/api/v1/nodes";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// Who prepares Nodes.
const PREPARER: &str = "preparer";

/// The policies refuse and allow what the table of cases says.
pub fn same_verdicts() -> Result<()> {
    let lab = cluster()?;
    let api = lab.api();
    let mut bench = Bench { api, groups: grant(api)?, stands: Value::Null };
    let cases = cases();

    let mut passed = 0;
    for case in &cases {
        match (bench.send(case)?, case.expected) {
            (Answer::Done { changed }, Expected::Refused(_)) => passed += usize::from(changed),
            (Answer::Done { .. }, Expected::Allowed) | (Answer::Invalid(_), Expected::Refused(_)) => {}
            (answer, _) => bail!("{}, without policies: {answer}", case.name),
        }
    }
    ensure!(passed > cases.len() / 4, "without policies only {passed} of {} cases pass", cases.len());
    println!("without policies {passed} of the requests pass that they are to refuse");

    let version = api.version()?;
    if minor(&version)? < SINCE {
        println!(
            "NOT tried: the admission policies on a real API server; this is {version}, and has none before 1.{SINCE}"
        );
        return Ok(());
    }
    apply_policies(api)?;
    bench.await_policies(&cases)?;
    let (mut wrong, mut told, mut dropped) = (vec![], BTreeSet::new(), 0);
    for case in &cases {
        match (bench.send(case)?, case.expected) {
            (Answer::Done { .. }, Expected::Allowed) => {}
            // Of several policies that refuse, the server names one.
            (Answer::Denied(words), Expected::Refused(because)) => {
                if words.contains(because) {
                    told.insert(because);
                }
            }
            // The server itself refuses the change, or leaves it out (a status that is not sent as such).
            (Answer::Invalid(_) | Answer::Done { changed: false }, Expected::Refused(_)) => dropped += 1,
            (answer, expected) => wrong.push(format!("{}: expected {expected:?}: {answer}", case.name)),
        }
    }
    ensure!(wrong.is_empty(), "Kubernetes {version}:\n{}", wrong.join("\n"));
    for case in &cases {
        if let Expected::Refused(because) = case.expected {
            ensure!(
                told.contains(because),
                "Kubernetes {version} has never refused anything since {because:?}"
            );
        }
    }
    println!(
        "Kubernetes {version}: the verdicts on {} requests are as expected; {dropped} reached no policy",
        cases.len()
    );
    Ok(())
}

/// What became of a request.
enum Answer {
    /// It was taken, and the Node is another, or not.
    Done { changed: bool },
    /// A policy refused it, with these words.
    Denied(String),
    /// The server refused it.
    Invalid(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { changed } => {
                write!(f, "taken, the Node {}", if *changed { "is another" } else { "is the same" })
            }
            Self::Denied(words) => write!(f, "denied: {words}"),
            Self::Invalid(words) => write!(f, "refused by the server itself: {words}"),
        }
    }
}

/// The server, and what stands on it.
struct Bench<'a> {
    api: &'a ApiServer,
    /// The group of those who have these permissions.
    groups: BTreeMap<Vec<String>, String>,
    /// The Node as the last case wanted it.
    stands: Value,
}

impl Bench<'_> {
    /// Makes the Node what the case begins with, and sends its request.
    fn send(&mut self, case: &Case) -> Result<Answer> {
        let request = &case.request;
        if self.stands != request.old_object
            && let Some(words) = self.prepare(&request.old_object)?
        {
            return Ok(Answer::Invalid(words));
        }
        let mut user = request.variable()["userInfo"].clone();
        let group = &self.groups[request.user.permissions()];
        user["groups"].as_array_mut().context("a user without groups")?.push(json!(group));
        let client = self.api.client().impersonating(&user);
        let name = request.variable()["name"].as_str().context("a Node without name")?.to_owned();
        let path = format!("{NODES}/{name}");
        let before = self.api.client().get(&path)?.json;
        let answer = match request.operation {
            "CREATE" => client.create(&format!("{NODES}?dryRun=All"), &creatable(&request.object))?,
            "DELETE" => client.delete(&format!("{path}?dryRun=All"))?,
            "UPDATE" => {
                let status = if request.resource() == "nodes/status" { "/status" } else { "" };
                let mut patch = difference(&request.old_object, &request.object);
                forget_bookkeeping(&mut patch);
                client.patch(&format!("{path}{status}?dryRun=All"), Patch::Merge, &patch)?
            }
            other => bail!("no request is {other}"),
        };
        let words = answer.json["message"].as_str().unwrap_or(&answer.text).to_owned();
        Ok(match answer.status {
            200..300 => {
                let (mut before, mut after) = (before, answer.json);
                forget_bookkeeping(&mut before);
                forget_bookkeeping(&mut after);
                Answer::Done { changed: before != after }
            }
            400..500 if words.contains("denied request: ") => Answer::Denied(words),
            // Without its roles, the case would prove nothing.
            403 if words.contains(" cannot ") => bail!("{}: {words}", case.name),
            400..500 => Answer::Invalid(words),
            status => bail!("{}: HTTP {status}: {words}", case.name),
        })
    }

    /// Makes the Node so; returns why the server has no such Nodes, if it has none.
    fn prepare(&mut self, wanted: &Value) -> Result<Option<String>> {
        let client = preparer(self.api);
        let path = format!("{NODES}/n1");
        self.stands = Value::Null;
        if client.get(&path)?.status == 200 {
            client.patch(&path, Patch::Merge, &json!({"metadata": {"finalizers": null}}))?.ok()?;
            client.delete(&path)?.ok()?;
        }
        if wanted.is_null() {
            return Ok(None);
        }
        let answer = client.create(NODES, &creatable(wanted))?;
        if answer.status == 422 {
            return Ok(Some(answer.text));
        }
        answer.ok()?;
        self.stands = wanted.clone();
        Ok(None)
    }

    /// Waits until each policy refuses what it is there for.
    fn await_policies(&mut self, cases: &[Case]) -> Result<()> {
        for who in
            ["a daemon of Warren changes no annotations", "only a node's own daemon", "an operator of Warren"]
        {
            let wanted = |case: &&Case| {
                let because = matches!(case.expected, Expected::Refused(because) if because.starts_with(who));
                because && case.request.operation == "UPDATE"
            };
            let case = cases.iter().find(wanted).with_context(|| format!("no case for {who:?}"))?;
            wait::until(&format!("the refusal of {:?}", case.name), TAKES_EFFECT, || {
                match self.send(case)? {
                    Answer::Denied(_) => Ok(()),
                    answer => bail!("{answer}"),
                }
            })?;
        }
        Ok(())
    }
}

/// A client whom the policies do not concern.
fn preparer(api: &ApiServer) -> Client<'_> {
    api.client().impersonating(&json!({"username": PREPARER, "groups": ["system:masters"]}))
}

/// Makes a group for each set of permissions in the cases, whose members may send their requests, too; returns them once
/// the server knows them. (`update` is sent by nobody: what only it would allow, operators do not have.)
fn grant(api: &ApiServer) -> Result<BTreeMap<Vec<String>, String>> {
    let client = api.client();
    let mut groups = BTreeMap::new();
    for case in cases() {
        let permissions = case.request.user.permissions().to_vec();
        let group = format!("case-{}", groups.len());
        if groups.contains_key(&permissions) {
            continue;
        }
        let mut rules = vec![json!({
            "apiGroups": [""], "resources": ["nodes", "nodes/status"],
            "verbs": ["get", "create", "patch", "delete"],
        })];
        rules.extend(permissions.iter().map(|permission| rule(permission)));
        let metadata = json!({"name": group});
        client
            .create(&format!("{RBAC}/clusterroles"), &json!({"metadata": metadata, "rules": rules}))?
            .ok()?;
        let binding = json!({
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": group},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
        });
        client.create(&format!("{RBAC}/clusterrolebindings"), &binding)?.ok()?;
        let member = client.impersonating(&json!({"username": "member", "groups": [group]}));
        wait::until(&format!("the role {group}"), TAKES_EFFECT, || {
            let answer = member.get(&format!("{NODES}/n1"))?;
            ensure!(answer.status == 404, "HTTP {}: {}", answer.status, answer.text);
            Ok(())
        })?;
        groups.insert(permissions, group);
    }
    Ok(groups)
}

/// `group=G resource=R [name=N] verb=V` as a rule of RBAC.
fn rule(permission: &str) -> Value {
    let word = |name: &str| permission.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let mut rule = json!({
        "apiGroups": [word("group")], "resources": [word("resource")], "verbs": [word("verb")],
    });
    if let Some(name) = word("name") {
        rule["resourceNames"] = json!([name]);
    }
    rule
}

/// Applies the component, with the preparer left out.
fn apply_policies(api: &ApiServer) -> Result<()> {
    for mut object in objects(&build_with(&["admission"])) {
        let collection = match object["kind"].as_str() {
            Some("ValidatingAdmissionPolicy") => "validatingadmissionpolicies",
            Some("ValidatingAdmissionPolicyBinding") => "validatingadmissionpolicybindings",
            _ => continue,
        };
        if let Some(conditions) = object.pointer_mut("/spec/matchConditions").and_then(Value::as_array_mut) {
            let expression = format!("request.userInfo.username != '{PREPARER}'");
            conditions.push(json!({"name": "not-the-preparer", "expression": expression}));
        }
        let answer: Response = api.client().create(&format!("{ADMISSION}/{collection}"), &object)?;
        answer.ok()?;
    }
    Ok(())
}

/// What makes `new` of `old` as a merge patch.
fn difference(old: &Value, new: &Value) -> Value {
    let (Some(before), Some(after)) = (old.as_object(), new.as_object()) else { return new.clone() };
    let mut patch = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(same) if same == value => {}
            Some(other) => drop(patch.insert(key.clone(), difference(other, value))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    Value::Object(patch)
}

/// Takes out of a Node, or of a patch of one, what the server keeps itself.
fn forget_bookkeeping(node: &mut Value) {
    let Some(fields) = node.as_object_mut() else { return };
    fields.remove("apiVersion");
    fields.remove("kind");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["resourceVersion", "generation", "managedFields"] {
            metadata.remove(field);
        }
    }
}

/// A Node of the cases as one that can be created: without what the server gives it.
fn creatable(node: &Value) -> Value {
    let mut node = node.clone();
    forget_bookkeeping(&mut node);
    if let Some(metadata) = node["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.remove("creationTimestamp");
    }
    node["apiVersion"] = json!("v1");
    node["kind"] = json!("Node");
    node
}
