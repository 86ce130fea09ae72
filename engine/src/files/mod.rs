//! Files where no file system is shared: operations for clients, inputs and outputs of jobs.

mod cache;
mod error;
mod ops;
mod stage;

pub(crate) use cache::Cache;
pub(crate) use error::{FileError, os_error};
pub(crate) use ops::FileHost;
pub(crate) use stage::{collect, place, private_dir};

/// Options for a file that may be a pipe: opening one would wait for its other end, and so would all who wait behind it.
fn unwaiting() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits() as i32,
    );
    options
}

#[cfg(test)]
mod tests;
