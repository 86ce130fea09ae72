//! Task scheduling: the core, the task thread around it, the pure relay, and what the hub asks of them.

pub mod command;
pub mod core;
pub mod pure;
pub mod task;
