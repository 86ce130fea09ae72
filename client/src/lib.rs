//! The client library of ipbroker: it runs functions and commands on the engines of a cluster.
//!
//! A [`Client`] is the connection to one controller; [`Client::builder`] says to which one. Calls go through a view: a
//! [`LoadBalancedView`] leaves it to the controller which engine runs a call, and has its options (retries, dependencies,
//! resources, …); a [`DirectView`] calls engines that you name. What a call returns is an [`AsyncResult`] or an
//! [`AsyncMapResult`]. The module [`job`] has the job lines of `ipclient run`, [`Batch`] submits them, and
//! [`Client::hosts`] gives the files on the engines' hosts.
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
//! Each [`Client`] has one background thread, which does all input and output; every type here may be used from any thread,
//! blocking or async. A submission is kept until the controller has acknowledged it, and is sent again to a controller that
//! was started anew.

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
pub use reply::{MemberInfo, Reply, ReplyInfo, members, printed};
pub use result::{AsyncMapResult, AsyncResult, Many, One, Ordered, Shape, TaskSetRef, Unordered};
pub use view::{DirectView, Imap, LoadBalancedView};
