//! The admission policies as shipped, evaluated over requests.
//!
//! The expressions are those of the YAML, run by a CEL implementation other than the API server's; so what is used of
//! the language is its common core, and what only the API server has (`authorizer`) is stood in for.
//!
//! These cases, but for fields that do not exist yet, got the same verdicts from the API server's own evaluator
//! (`k8s.io/apiserver` 0.36.4, in its environments of 1.30 and 1.35), within its cost budget.
//!
//! `tests/server` sends the same cases to a real API server, as far as it is new enough (1.30, `$KUBEBUILDER_ASSETS`).

mod cases;
mod policy;
mod request;
mod verdicts;
