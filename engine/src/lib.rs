//! The engine of ipbroker: a process that runs shell commands and Rust functions for clients of a controller.
//!
//! `ipengine` is this crate's program. A Rust programmer who wants functions of their own builds another one:
//!
//! ```no_run
//! fn main() -> Result<(), ipbroker_engine::EngineError> {
//!     ipbroker_engine::init();
//!     ipbroker_engine::Engine::builder()
//!         .function("square", |_, x: f64| Ok::<_, String>(x * x))
//!         .run()
//! }
//! ```
//!
//! Jobs never outlive their engine process: a small *reaper* process watches over it and kills what is left, even after
//! `kill -9`. In a program that calls [`init`] first the reaper is that same program, started again, and also tells the
//! controller at once what had been started; else it is a few lines of shell, and the controller learns of the
//! death by the heartbeat.

mod builder;
pub mod cancel;
mod connect;
mod executor;
mod files;
pub mod function;
mod host;
mod io;
mod job;
mod kernel;
mod obituary;
mod process;
mod reaper;
mod seat;
mod settings;
mod task;
mod written;

pub use builder::{Builder, Engine, EngineError, Handle};
pub use connect::{CONNECTION_INFO, ConnectError, Source};
pub use host::allocated;
pub use ipbroker_protocol as protocol;

/// Makes this process the reaper if it was started as one, and does not return then; call it first in `main`.
///
/// What `main` does before this call is done twice.
pub fn init() {
    reaper::init(obituary::send);
}
