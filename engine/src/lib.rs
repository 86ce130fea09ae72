//! The engine of ipbroker: a process that runs shell commands and Rust functions for clients of a controller.
//!
//! `ipengine` is this crate's program. For an engine with Rust functions of your own, build another program:
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
//! A function gets a [`function::Context`], which tells about the call and whether it was aborted, and one argument; the
//! argument and the result are of types that serde can serialize. For calls that share a state there is
//! [`function::Executor`].
//!
//! Jobs never outlive their engine process: a small *reaper* process watches it and kills what is left of its jobs, even after
//! `kill -9`. If the program calls [`init`] first, the reaper is the same program, started again, and also tells the
//! controller at once which tasks had been started. Otherwise it is a few lines of shell, and the controller notices the end
//! of the engine only by its missing heartbeats.

mod builder;
pub mod cancel;
mod connect;
mod death_notice;
mod executor;
mod files;
pub mod function;
mod host;
mod io;
mod job;
mod kernel;
mod logical_engine;
mod process;
mod reaper;
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
    reaper::init(death_notice::send);
}
