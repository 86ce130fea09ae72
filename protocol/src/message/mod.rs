//! Typed headers, metadata and contents. Keys that a type does not know are kept in `extra` or ignored, never an error.

mod content;
mod events;
mod fs;
mod header;
mod hub;
mod metadata;
pub mod types;

pub use content::*;
pub use events::*;
pub use fs::*;
pub use header::*;
pub use hub::*;
pub use metadata::*;

/// For keys that are left out when they say nothing.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
