//! Files where no file system is shared: operations for clients, inputs and outputs of jobs.

mod cache;
mod error;
mod ops;
mod stage;

pub(crate) use cache::Cache;
pub(crate) use error::FileError;
pub(crate) use ops::FileHost;
pub(crate) use stage::{Scratch, collect, place, private_dir};

#[cfg(test)]
mod tests;
