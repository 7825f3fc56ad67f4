//! The fake API server, driven by a client that knows nothing of it.
fn main() {}
