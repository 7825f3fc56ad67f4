//! Where nodes publish and watch announcements.

pub mod dir;
mod manifest;

pub use dir::DirRegistry;
