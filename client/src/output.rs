//! What people and programs read.

pub(crate) mod jobs;
pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod table;
