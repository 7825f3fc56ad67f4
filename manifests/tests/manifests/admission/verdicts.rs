//! The verdicts on all cases, and that the cases leave no expression untried.

use std::collections::BTreeSet;

use super::cases::{Case, Expected, cases};
use super::policy::{Policy, Verdict};
use crate::kustomize::{build_with, objects};

fn policies() -> Vec<Policy> {
    let objects = objects(&build_with(&["admission"]));
    let policies: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "ValidatingAdmissionPolicy")
        .map(Policy::read)
        .collect();
    assert_eq!(policies.len(), 3);
    policies
}

/// The messages of all validations that say no.
fn refusals(policies: &[Policy], case: &Case) -> Vec<String> {
    let mut refusals = vec![];
    for policy in policies {
        if let Verdict::Judged(results) = policy.judge(&case.request) {
            for (validation, result) in policy.validations.iter().zip(results) {
                // No expression needs an error to refuse: what is refused has a message that says why.
                let holds =
                    result.unwrap_or_else(|error| panic!("{}: {}: {error}", case.name, validation.text));
                if !holds {
                    refusals.push(validation.title.clone());
                }
            }
        }
    }
    refusals
}

#[test]
fn every_request_gets_the_verdict_it_should() {
    let policies = policies();
    let mut wrong = vec![];
    for case in cases() {
        let refusals = refusals(&policies, &case);
        let right = match case.expected {
            Expected::Allowed => refusals.is_empty(),
            Expected::Refused(because) => refusals.iter().any(|message| message.contains(because)),
        };
        if !right {
            wrong.push(format!("{}: expected {:?}, refused because {refusals:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Each validation alone refuses some case (so none can be left out), and lets another pass; each condition has been
/// both.
#[test]
fn no_expression_is_left_untried() {
    let policies = policies();
    let mut seen = BTreeSet::new();
    for case in cases() {
        let refusals = refusals(&policies, &case);
        for policy in &policies {
            match policy.judge(&case.request) {
                Verdict::Unmatched => {}
                Verdict::Skipped(index) => drop(seen.insert((&policy.conditions[index].text, false))),
                Verdict::Judged(results) => {
                    seen.extend(policy.conditions.iter().map(|condition| (&condition.text, true)));
                    for (validation, result) in policy.validations.iter().zip(results) {
                        let alone = refusals.len() == 1 && refusals[0] == validation.title;
                        if alone || refusals.is_empty() {
                            seen.insert((&validation.text, result.unwrap()));
                        }
                    }
                }
            }
        }
    }
    for policy in &policies {
        for expression in policy.conditions.iter().chain(&policy.validations) {
            for truth in [true, false] {
                assert!(
                    seen.contains(&(&expression.text, truth)),
                    "{}: no case in which only {:?} is {truth}",
                    policy.name,
                    expression.title
                );
            }
        }
    }
}

/// Most writes to Nodes are heartbeats; no policy evaluates more than its conditions for them.
#[test]
fn heartbeats_end_at_the_conditions() {
    let heartbeats: Vec<_> =
        cases().into_iter().filter(|case| case.name.ends_with("sends a heartbeat")).collect();
    assert!(heartbeats.len() >= 2);
    let policies = policies();
    for case in heartbeats {
        for policy in &policies {
            assert!(
                matches!(policy.judge(&case.request), Verdict::Skipped(_)),
                "{}: {}",
                policy.name,
                case.name
            );
        }
    }
}

/// The API server's budget for one expression holds two questions to the authorizer (350,000 of 1,000,000 each).
#[test]
fn no_expression_asks_the_authorizer_more_than_twice() {
    for policy in policies() {
        for expression in policy.conditions.iter().chain(&policy.validations) {
            assert!(expression.text.matches(".check(").count() <= 2, "{}: {}", policy.name, expression.text);
        }
    }
}

#[test]
fn every_policy_is_bound_everywhere_and_refuses() {
    let objects = objects(&build_with(&["admission"]));
    for policy in policies() {
        let bindings: Vec<_> = objects
            .iter()
            .filter(|object| object["kind"] == "ValidatingAdmissionPolicyBinding")
            .filter(|binding| binding["spec"]["policyName"] == policy.name.as_str())
            .collect();
        assert_eq!(bindings.len(), 1, "{}", policy.name);
        assert_eq!(bindings[0]["spec"]["validationActions"], serde_json::json!(["Deny"]), "{}", policy.name);
        assert!(
            bindings[0]["spec"].get("matchResources").is_none(),
            "{} is bound to a part only",
            policy.name
        );
    }
}
