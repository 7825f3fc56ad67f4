//! Tests of what an administrator applies: that it builds, that the API server's schemas accept it, that it promises
//! no less and allows no more than documented.

mod admission;
mod alerts;
mod daemonset;
mod image;
mod kustomize;
mod roles;
mod schemas;
mod tools;
