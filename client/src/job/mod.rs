//! Job lines, as `ipclient run` reads and prints them: one JSON object on each line, and the same object with `result` when
//! the job has ended (the format of Bakapara). `docs/reference/jobs.md` lists their keys.

mod convert;
mod error;
mod graph;
mod keys;
mod line;
mod outcome;
mod value;

pub use error::{JobError, LineError};
pub use graph::{Graph, GraphError, rename};
pub use ipbroker_protocol::message::{Limit, Require};
pub use ipbroker_protocol::size::parse as parse_size;
pub use ipbroker_protocol::time::parse_duration;
pub use line::{Condition, Job, Placement, Transfer, directory, parse_line};
pub use outcome::{CAPTURE, JobResult, JobStatus, write_line};
pub use value::{isoformat, log_time, timedelta};
