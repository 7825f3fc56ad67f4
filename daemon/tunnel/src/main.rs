//! The program `warren-tunnel`.

fn main() {}
