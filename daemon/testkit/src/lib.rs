//! A small network of nodes and pods on one machine, in namespaces that vanish with the program: what
//! Warren's scenarios and its demo run in. Never a dependency of anything that ships.
//!
//! A scenario reads top down:
//!
//! 1. [`isolate::enter`], first in `main`: the whole program moves into namespaces of its own, as root or
//!    in a user namespace. Whatever happens afterwards, nothing is left behind. ([`scenario::run`] is a
//!    whole `main` with it.)
//! 2. [`lab::Lab`] builds N nodes with pods on an underlay, joined as a host-gateway CNI would join them:
//!    **without Warren the pods talk in the clear**, so that a test for leaks can fail.
//! 3. [`lab::Node::start_warrend`] runs the daemon under test; [`lab::Node::status`] asks it how it is.
//! 4. [`capture::Capture`] listens to the underlay and classifies each packet; [`traffic`] makes packets
//!    to be heard: ping, iperf3, TCP, and forged ones.
//! 5. [`wait::until`] waits for a condition, and says what was missing when it never came.
//!
//! [`netns::Netns`] is the brick below all of these, for tests that need less than a lab.

pub mod announced;
pub mod apiserver;
pub mod capture;
pub mod isolate;
pub mod lab;
pub mod netns;
pub mod process;
pub mod scenario;
mod sys;
pub mod tools;
pub mod traffic;
pub mod wait;
