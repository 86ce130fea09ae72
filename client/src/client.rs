//! The connection to a cluster.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use ipbroker_protocol::connection::ClientConnection;
use ipbroker_protocol::envelope::Envelope;
use ipbroker_protocol::frames::Frames;
use ipbroker_protocol::message::{Header, TaskRequest, types};
use ipbroker_protocol::session::{Empty, Session};
use ipbroker_protocol::time;
use ipbroker_protocol::zmq::Message;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::builder::ClientBuilder;
use crate::engines::{Engines, Notice};
use crate::error::{Error, Result};
use crate::io::{self, Channel, Handle, Listener, Pending, Request, Sink, Submission, Takers};
use crate::view::{DirectView, LoadBalancedView};
use crate::wire::{self, Built};

/// How long the first answer is waited for before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A connection to a controller. Clones share it; the last one closes it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let common = &self.inner.connection.common;
        f.debug_struct("Client")
            .field("session", &self.inner.session.id)
            .field(
                "controller",
                &common.url(self.inner.connection.registration),
            )
            .finish()
    }
}

struct Inner {
    session: Arc<Session>,
    engines: Arc<Engines>,
    connection: ClientConnection,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    timeout: Duration,
    /// The way to the controller; closed last.
    _way: Option<Way>,
}

/// Local ports that lead to the controller.
#[cfg(feature = "ssh")]
type Way = ipbroker_protocol::ssh::Forwards;
#[cfg(not(feature = "ssh"))]
type Way = std::convert::Infallible;

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.handle.send(Request::Close);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// A submission before it is packed.
pub struct Outgoing<'a, C: Serialize + ?Sized> {
    /// The request's type.
    pub msg_type: &'a str,
    /// Scheduling metadata.
    pub metadata: &'a TaskRequest,
    /// Content.
    pub content: &'a C,
    /// Buffers.
    pub buffers: Vec<Message>,
    /// What the sink knows it by.
    pub tag: u64,
}

/// A request that is made many times: its maps are packed once.
#[derive(Debug, Clone)]
pub struct Template {
    msg_type: &'static str,
    options: TaskRequest,
    /// The options of a single task.
    metadata: Vec<u8>,
    content: Vec<u8>,
}

impl Client {
    /// Which cluster to connect to.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn connect(
        connection: ClientConnection,
        path: &Path,
        options: &ClientBuilder,
        way: Option<Way>,
    ) -> Result<Self> {
        let common = &connection.common;
        let (host, address) = (common.host(), common.url(connection.registration));
        let file = path.display().to_string();
        let begin = Instant::now();
        reachable(
            &host,
            connection.registration,
            options.timeout.min(Duration::from_secs(3)),
        )
        .map_err(|reason| Error::NoController {
            address: address.clone(),
            file: file.clone(),
            reason,
        })?;
        let session = Arc::new(common.session()?);
        let engines = Arc::new(Engines::default());
        let settings = io::Settings {
            connection: connection.clone(),
            session: session.clone(),
            engines: engines.clone(),
            grace: options.grace,
        };
        let (handle, thread) = io::start(settings)?;
        let inner = Inner {
            session,
            engines,
            connection,
            handle,
            thread: Some(thread),
            timeout: Duration::from_secs(30),
            _way: way,
        };
        let client = Self {
            inner: Arc::new(inner),
        };
        let left = options
            .timeout
            .saturating_sub(begin.elapsed())
            .max(Duration::from_secs(1));
        client.inner.engines.ask();
        // A controller that is started again just now was asked in its earlier life: again, then.
        let until = Instant::now() + left;
        let (answer, asked) = loop {
            let wait = until
                .saturating_duration_since(Instant::now())
                .min(ASK_AGAIN);
            let asked = Timestamp::now();
            let request = (types::CONNECTION_REQUEST, &Empty {});
            match client.ask(Channel::Hub, None, request, Vec::new(), wait) {
                Err(Error::QueryTimeout { .. }) if Instant::now() < until => {}
                other => break (other, asked),
            }
        };
        let answer = match answer {
            Err(Error::QueryTimeout { .. }) if client.inner.engines.wrong_signatures() > 0 => {
                return Err(Error::WrongKey { address, file });
            }
            Err(Error::QueryTimeout { .. }) => {
                return Err(Error::NoAnswer {
                    address,
                    file,
                    seconds: options.timeout.as_secs_f64(),
                });
            }
            other => other?,
        };
        let session = &client.inner.session;
        let header: Header = session.unpack(answer.header())?;
        if let Some(date) = time::parse(&header.date) {
            session.heard_date(date, asked, Timestamp::now());
        }
        client.inner.engines.answered(client.unpack(&answer)?);
        Ok(client)
    }

    /// Now, by the controller's clock as far as it is known.
    pub fn now(&self) -> Timestamp {
        self.inner.session.now()
    }

    /// Engine numbers, in order.
    pub fn ids(&self) -> Vec<u32> {
        self.inner.engines.all().into_keys().collect()
    }

    /// How many engines there are.
    pub fn engine_count(&self) -> usize {
        self.inner.engines.len()
    }

    /// Waits until `count` engines are registered (for ever without a timeout); returns how many there are.
    pub fn wait_for_engines(&self, count: usize, timeout: Option<Duration>) -> usize {
        self.inner.engines.wait_for(count, timeout)
    }

    /// What happened to the controller since this was last asked.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.inner.engines.take_notices()
    }

    /// A view that runs tasks wherever there is room.
    #[must_use]
    pub fn load_balanced_view(&self) -> LoadBalancedView {
        LoadBalancedView::new(self.clone())
    }

    /// A view of all engines that there are now.
    #[must_use]
    pub fn direct_view(&self) -> DirectView {
        DirectView::new(self.clone(), self.inner.engines.all().into_iter().collect())
    }

    /// A view of some engines, by number.
    ///
    /// # Errors
    /// [`Error::NoEngines`] when one of them is not there.
    pub fn direct_view_of(&self, ids: &[u32]) -> Result<DirectView> {
        let all = self.inner.engines.all();
        let targets = ids
            .iter()
            .map(|id| {
                let uuid = all
                    .get(id)
                    .ok_or_else(|| Error::NoEngines(format!(" with id {id}")))?;
                Ok((*id, uuid.clone()))
            })
            .collect::<Result<_>>()?;
        Ok(DirectView::new(self.clone(), targets))
    }

    /// The session id, part of every task's id.
    pub fn session_id(&self) -> &str {
        &self.inner.session.id
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.inner.session
    }

    /// The connection file's content.
    pub fn connection(&self) -> &ClientConnection {
        &self.inner.connection
    }

    /// Submits a task (or, with `metadata.array`, many) to the scheduler; results go to `sink` as they come.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::TooLarge`], [`Error::Option`].
    pub fn submit<C: Serialize + ?Sized>(
        &self,
        task: Outgoing<'_, C>,
        sink: Arc<dyn Sink>,
    ) -> Result<String> {
        let content = self.inner.session.pack(task.content);
        let kind = (task.msg_type, task.metadata, &content[..]);
        self.submit_packed(kind, None, task.buffers, (sink, task.tag))
    }

    /// Submits a task of this type with these options and this packed content; `metadata` are the options, packed.
    fn submit_packed(
        &self,
        (msg_type, options, content): (&str, &TaskRequest, &[u8]),
        metadata: Option<&[u8]>,
        buffers: Vec<Message>,
        (sink, tag): (Arc<dyn Sink>, u64),
    ) -> Result<String> {
        let Inner {
            session, handle, ..
        } = &*self.inner;
        let times = [
            ("timeout", options.timeout),
            ("retry_delay", options.retry_delay),
            ("prefer_wait", options.prefer_wait),
            ("time", options.time),
        ];
        for (option, value) in times {
            if let Some(value) = value.filter(|value| !(0.0..f64::INFINITY).contains(value)) {
                return Err(Error::Option { option, value });
            }
        }
        if let (types::FUNCTION_REQUEST, None, [argument]) = (msg_type, options.array, &buffers[..])
            && let Some(id) = handle.gather((options, content), argument, (&sink, tag))?
        {
            return Ok(id);
        }
        let packed;
        let metadata = match metadata {
            Some(metadata) => metadata,
            None => {
                packed = session.pack(options);
                &packed
            }
        };
        let head = session.packed_header(msg_type);
        let built = wire::build_packed(session, None, head, metadata, content, buffers);
        let mut awaited = Pending::new(Channel::Task, options.array, Takers::One(sink, tag));
        awaited.ack = options.ack;
        self.hand_over(built, awaited)
    }

    /// Packs what the requests of one kind have in common, for [`Client::submit_like`].
    #[must_use]
    pub fn template<C: Serialize + ?Sized>(
        &self,
        msg_type: &'static str,
        options: TaskRequest,
        content: &C,
    ) -> Template {
        let session = &self.inner.session;
        Template {
            msg_type,
            metadata: session.pack(&options),
            options,
            content: session.pack(content),
        }
    }

    /// Submits a task (or an array of `members`) made after a template; results go to `sink` as they come.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::TooLarge`], [`Error::Option`].
    pub fn submit_like(
        &self,
        template: &Template,
        members: Option<u64>,
        buffers: Vec<Message>,
        sink: Arc<dyn Sink>,
        tag: u64,
    ) -> Result<String> {
        let array = members.map(|_| TaskRequest {
            array: members,
            ..template.options.clone()
        });
        let (options, metadata) = match &array {
            Some(options) => (options, None),
            None => (&template.options, Some(&template.metadata[..])),
        };
        let kind = (template.msg_type, options, &template.content[..]);
        self.submit_packed(kind, metadata, buffers, (sink, tag))
    }

    /// Tells `listener` what this client's tasks print while they run, from now on. Tasks that end at once may have printed
    /// before the controller knows of it: what a reply says is complete.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn listen(&self, listener: Arc<dyn Listener>) -> Result<()> {
        self.inner.handle.send(Request::Listen(listener))
    }

    /// Sends a task to one engine, past the scheduler.
    pub(crate) fn submit_direct<C: Serialize + ?Sized>(
        &self,
        engine: &str,
        task: Outgoing<'_, C>,
        sink: Arc<dyn Sink>,
    ) -> Result<String> {
        let mut awaited = Pending::new(Channel::Mux, None, Takers::One(sink, task.tag));
        awaited.engines = vec![engine.to_owned()];
        let request = (task.msg_type, task.metadata, task.content);
        self.dispatch(Some(engine), request, task.buffers, awaited)
    }

    /// Sends one task to many engines through the broadcast tree; member `i` of the result is that of `engines[i]`.
    pub(crate) fn submit_broadcast<M: Serialize, C: Serialize + ?Sized>(
        &self,
        engines: Vec<String>,
        request: (&str, &M, &C),
        buffers: Vec<Message>,
        sink: Arc<dyn Sink>,
    ) -> Result<String> {
        let members = engines.len() as u64;
        let awaited = Pending {
            members,
            left: members,
            engines,
            ..Pending::new(Channel::Broadcast, None, Takers::One(sink, 0))
        };
        self.dispatch(None, request, buffers, awaited)
    }

    fn dispatch<M: Serialize, C: Serialize + ?Sized>(
        &self,
        engine: Option<&str>,
        (msg_type, metadata, content): (&str, &M, &C),
        buffers: Vec<Message>,
        awaited: Pending,
    ) -> Result<String> {
        let session = &self.inner.session;
        let built = wire::build(session, engine, msg_type, metadata, content, buffers);
        self.hand_over(built, awaited)
    }

    /// Gives a request to the I/O thread; the request's id.
    fn hand_over(&self, built: Built, awaited: Pending) -> Result<String> {
        self.fits(&built.frames)?;
        let (number, frames) = (built.number, built.frames);
        let submission = Submission {
            number,
            frames,
            awaited,
        };
        let request = Request::Submit(Box::new(submission));
        self.inner.handle.send(request)?;
        Ok(built.msg_id)
    }

    /// Sends a request and waits for its answer.
    fn ask<C: Serialize + ?Sized>(
        &self,
        channel: Channel,
        engine: Option<&str>,
        (msg_type, content): (&str, &C),
        buffers: Vec<Message>,
        timeout: Duration,
    ) -> Result<Envelope> {
        let (number, receive) = self.begin_query(channel, engine, (msg_type, content), buffers)?;
        match receive.recv_timeout(timeout) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(Error::Closed),
            Err(RecvTimeoutError::Timeout) => {
                self.inner.handle.send(Request::Forget(number))?;
                Err(Error::QueryTimeout {
                    request: msg_type.to_owned(),
                    seconds: timeout.as_secs_f64(),
                })
            }
        }
    }

    /// Asks the hub, and does not wait: what it answers is not looked at.
    pub(crate) fn tell<C: Serialize + ?Sized>(&self, msg_type: &str, content: &C) -> Result<()> {
        // Nobody receives the answer, which ends the wait for it.
        self.begin_query(Channel::Hub, None, (msg_type, content), Vec::new())?;
        Ok(())
    }

    /// Sends a request; its number, and where its answer comes.
    fn begin_query<C: Serialize + ?Sized>(
        &self,
        channel: Channel,
        engine: Option<&str>,
        (msg_type, content): (&str, &C),
        buffers: Vec<Message>,
    ) -> Result<(u64, Receiver<Result<Envelope>>)> {
        let session = &self.inner.session;
        let Built { number, frames, .. } =
            wire::build(session, engine, msg_type, &Empty {}, content, buffers);
        self.fits(&frames)?;
        let (answer, receive) = crossbeam_channel::bounded(1);
        self.inner.handle.send(Request::Query {
            number,
            channel,
            engine: engine.map(str::to_owned),
            frames,
            answer,
        })?;
        Ok((number, receive))
    }

    /// Whether the controller takes a message of this size.
    fn fits(&self, frames: &Frames) -> Result<()> {
        let (bytes, most) = (
            frames.bytes() as u64,
            self.inner.connection.common.max_message,
        );
        if most != 0 && bytes > most {
            return Err(Error::TooLarge { bytes, most });
        }
        Ok(())
    }

    /// So many bytes of values at most go into one array, of `most`: beside them a message has more, and members that are
    /// larger travel alone.
    pub(crate) fn array_bytes(&self, most: usize) -> usize {
        match self.inner.connection.common.max_message {
            0 => most,
            taken => most.min(usize::try_from(taken / 2).unwrap_or(most)),
        }
    }

    pub(crate) fn unpack<T: DeserializeOwned>(&self, envelope: &Envelope) -> Result<T> {
        Ok(self.inner.session.unpack(envelope.content())?)
    }

    /// Asks the hub, and unpacks its answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the hub's words, [`Error::QueryTimeout`].
    pub fn query<C: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        msg_type: &str,
        content: &C,
    ) -> Result<T> {
        let answer = self.query_raw(msg_type, content)?;
        self.unpack(&answer)
    }

    /// Asks the hub; the answer's buffers are wanted too.
    ///
    /// # Errors
    /// As [`Client::query`].
    pub fn query_raw<C: Serialize + ?Sized>(
        &self,
        msg_type: &str,
        content: &C,
    ) -> Result<Envelope> {
        self.ask_hub(self.inner.timeout, (msg_type, content))
    }

    /// Asks the hub for what it answers at once or never.
    pub(crate) fn query_within<C: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        limit: Duration,
        request: (&str, &C),
    ) -> Result<T> {
        let answer = self.ask_hub(limit, request)?;
        self.unpack(&answer)
    }

    fn ask_hub<C: Serialize + ?Sized>(
        &self,
        limit: Duration,
        request: (&str, &C),
    ) -> Result<Envelope> {
        let answer = self.ask(Channel::Hub, None, request, Vec::new(), limit)?;
        self.refusal(request.0, &answer)?;
        Ok(answer)
    }

    fn refusal(&self, msg_type: &str, answer: &Envelope) -> Result<()> {
        let status: Status = self.unpack(answer)?;
        if status.status != "error" {
            return Ok(());
        }
        let message = match (status.ename.as_str(), status.evalue.as_str()) {
            ("", "") => "no reason given".to_owned(),
            ("", text) | (text, "") => text.to_owned(),
            (name, text) => format!("{name}: {text}"),
        };
        Err(Error::Refused {
            request: msg_type.to_owned(),
            message,
        })
    }

    /// Sends a request to one engine's control socket and waits for the answer.
    pub(crate) fn control<C: Serialize + ?Sized>(
        &self,
        engine: &str,
        msg_type: &str,
        content: &C,
    ) -> Result<Envelope> {
        let request = (msg_type, content);
        let limit = self.inner.timeout;
        self.ask(Channel::Control, Some(engine), request, Vec::new(), limit)
    }

    /// Sends a file operation to one engine and waits for the answer.
    pub(crate) fn fs<C: Serialize + ?Sized>(
        &self,
        engine: &str,
        content: &C,
        buffers: Vec<Message>,
        limit: Duration,
    ) -> Result<Envelope> {
        let request = (types::FS_REQUEST, content);
        self.ask(Channel::Mux, Some(engine), request, buffers, limit)
    }
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Status {
    status: String,
    ename: String,
    evalue: String,
}

/// Whether anything listens at all: libzmq itself would retry for ever without a word.
fn reachable(host: &str, port: u16, timeout: Duration) -> std::result::Result<(), String> {
    let mut reason = format!("{host} has no address");
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("{host}: {error}"))?;
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => return Ok(()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}
