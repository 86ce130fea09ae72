//! Shell jobs: how one is started, watched, stopped and reported. Nothing here knows the wire.

mod capture;
mod limits;
mod memory;
mod run;
mod running;
mod warden;

pub(crate) use capture::{Captured, Stream};
pub(crate) use limits::{Cage, Limits};
pub(crate) use memory::{pids, stat};
pub(crate) use run::{Finished, Input, Job, JobError, Observer, run};
pub(crate) use running::{Ask, Interrupt, Running, Stop};
pub(crate) use warden::Warden;

#[cfg(test)]
mod tests;
