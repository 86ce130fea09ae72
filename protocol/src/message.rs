//! Typed headers, metadata and contents. Keys that a type does not know are kept in `extra` or ignored, never an error.

mod content;
mod fs;
mod header;
mod hub;
mod metadata;
pub mod types;

pub use content::*;
pub use fs::*;
pub use header::*;
pub use hub::*;
pub use metadata::*;
