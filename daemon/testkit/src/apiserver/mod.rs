//! Kubernetes API servers for tests: a [`fake`] one for what a real one cannot do on demand.

pub mod fake;
