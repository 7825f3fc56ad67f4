//! Kubernetes API servers for tests: a [`real`] one, and a [`fake`] one for what a real one
//! cannot do on demand.

pub mod fake;
pub mod real;
