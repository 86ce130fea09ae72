//! The controller of an ipbroker cluster: hub, relays, task scheduler and store.
//!
//! `ipctl` is this crate's program. The library is for a controller with a scheduling scheme of your own: make one with
//! [`scheduler::core::own_scheme`], or implement [`scheduler::core::Scheme`], and give it to [`app::with_scheme`]
//! (`examples/scheme.rs`). [`store`] and [`error`] are parts of `ipctl` that its tests and benchmarks look into.

// Without the page nobody asks for what only it is told.
#![cfg_attr(not(feature = "web"), allow(dead_code, unused_imports))]

pub mod app;
mod cli;
mod config_py;
pub mod error;
mod hub;
mod launch;
mod mailbox;
mod relay;
pub mod scheduler;
pub mod store;
#[cfg(feature = "web")]
mod web;
