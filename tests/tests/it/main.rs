//! Tests on the built programs. One binary, since each has to be linked with everything.

mod bundles;
mod cli;
mod examples;
mod faults;
mod graph;
mod hostile;
mod library;
mod lifecycle;
mod mapreduce;
mod parallel;
mod peer;
mod processes;
mod resources;
mod resuming;
mod run;
mod schemes;
mod strangers;
mod versions;
mod watch;
