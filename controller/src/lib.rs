//! The controller of an ipbroker cluster: hub, relays, task scheduler and store.

pub mod app;
pub mod cli;
pub mod config_py;
pub mod hub;
pub mod junk;
pub mod launch;
pub mod mailbox;
pub mod relay;
pub mod scheduler;
pub mod store;
#[cfg(feature = "web")]
mod web;
