//! The client of ipbroker: functions and commands on the engines of a cluster.
//!
//! ```no_run
//! use ipbroker_client::Client;
//!
//! let client = Client::builder().profile("default").connect()?;
//! let view = client.load_balanced_view();
//! // One call, awaited; `.await` works as well.
//! let echoed: String = view.apply("echo", "hello")?.get()?;
//! // A million calls, a few messages.
//! let results = view.map_count::<()>("noop", 1_000_000)?;
//! results.wait_interactive(std::time::Duration::from_secs(1));
//! # let _ = echoed;
//! # Ok::<(), ipbroker_client::Error>(())
//! ```
//!
//! One background thread a [`Client`] does all input and output; every type here may be used from any thread, blocking
//! or async. Submissions are kept until the controller has acknowledged them and are sent again to a restarted one.

mod batch;
mod builder;
mod client;
mod engines;
mod error;
mod fs;
mod gather;
mod io;
pub mod job;
mod query;
mod reply;
mod result;
mod view;
mod wire;

pub use batch::{Batch, IMPOSSIBLE, by_placement};
pub use builder::ClientBuilder;
pub use client::{Client, Outgoing, Template};
pub use engines::Notice;
pub use error::{Error, Result, TaskError};
pub use fs::{Host, PART};
pub use io::{Listener, Part, Sink};
pub use ipbroker_protocol as protocol;
pub use query::{Explanation, Outcomes, PastReply, Record};
pub use reply::{MemberInfo, Reply, ReplyInfo, members};
pub use result::{AsyncMapResult, AsyncResult, Many, One, Ordered, Shape, TaskSetRef, Unordered};
pub use view::{DirectView, Imap, LoadBalancedView};
