//! The controller of an ipbroker cluster: hub, relays, task scheduler and store.

// Without the page nobody asks for what only it is told.
#![cfg_attr(not(feature = "web"), allow(dead_code, unused_imports))]

pub mod app;
pub mod cli;
pub mod config_py;
pub mod hub;
pub mod launch;
pub mod mailbox;
pub mod relay;
pub mod scheduler;
pub mod store;
#[cfg(feature = "web")]
mod web;
