//! The admission policies as shipped, evaluated over requests.
//!
//! The expressions are those of the YAML, run by a CEL implementation other than the API server's; so what is used of
//! the language is its common core, and what only the API server has (`authorizer`) is stood in for.
//!
//! To try the same policies on a real API server (1.30 or newer, `$KUBEBUILDER_ASSETS`), apply the component and send
//! the requests of `cases` with tokens bound to pods.

mod cases;
mod policy;
mod request;
mod verdicts;
