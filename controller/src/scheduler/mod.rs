//! Task scheduling: the core, the task thread around it, the pure relay, and what the hub asks of them.

pub(crate) mod command;
pub mod core;
pub(crate) mod pure;
pub(crate) mod task;
