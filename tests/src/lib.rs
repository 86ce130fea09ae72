//! What the tests and the benchmarks share: where the built programs are, a cluster that cleans up after itself, waiting with a
//! limit, and an independent implementation of the wire.

// libzmq comes in through the protocol crate, even where nothing else of it is used.
use ipbroker_protocol as _;

pub mod batch;
pub mod cluster;
pub mod fuzz;
pub mod http;
pub mod lab;
pub mod programs;
pub mod raw;
pub mod stranger;
pub mod wait;
pub mod wire;

pub use cluster::{Cluster, ClusterBuilder};
pub use lab::Lab;
pub use programs::{Finished, Program, program};
pub use raw::RawClient;
pub use stranger::Stranger;
pub use wait::{LIMIT, eventually};
