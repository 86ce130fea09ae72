//! The connection to a cluster.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use ipbroker_protocol::connection::{self, ClientConnection};
use ipbroker_protocol::envelope::Envelope;
use ipbroker_protocol::message::{TaskRequest, types};
use ipbroker_protocol::profile::{Profile, Role};
use ipbroker_protocol::session::{Empty, Session};
#[cfg(feature = "ssh")]
use ipbroker_protocol::ssh::{Gateway, Settings};
use ipbroker_protocol::zmq::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engines::{Engines, Notice};
use crate::error::{Error, Result};
use crate::io::{self, Channel, Handle, Request, Sink, Submission};
use crate::view::{DirectView, LoadBalancedView};
use crate::wire::{self, Built};

/// Which cluster, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    profile: Option<String>,
    profile_dir: Option<PathBuf>,
    cluster_id: Option<String>,
    file: Option<PathBuf>,
    timeout: Duration,
    grace: Duration,
    ssh: Option<String>,
    #[cfg(feature = "ssh")]
    settings: Option<ipbroker_protocol::ssh::Settings>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            profile: None,
            profile_dir: None,
            cluster_id: None,
            file: None,
            timeout: Duration::from_secs(10),
            grace: Duration::from_secs(300),
            ssh: None,
            #[cfg(feature = "ssh")]
            settings: None,
        }
    }
}

impl ClientBuilder {
    /// The profile's name; default: `default`.
    #[must_use]
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// The profile's directory, instead of a name.
    #[must_use]
    pub fn profile_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.profile_dir = Some(dir.into());
        self
    }

    /// Which of several clusters of the profile.
    #[must_use]
    pub fn cluster_id(mut self, id: impl Into<String>) -> Self {
        self.cluster_id = Some(id.into());
        self
    }

    /// The connection file itself, instead of a profile.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// How long to wait for the controller's first answer; default 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a controller that vanishes later is waited for before its tasks fail; default 5 minutes.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Reach the controller through this SSH server (`[user@]host[:port]`, or a name from `~/.ssh/config`). The connection
    /// file is read there, unless [`ClientBuilder::file`] names one that is here.
    #[cfg(feature = "ssh")]
    #[must_use]
    pub fn ssh(mut self, server: impl Into<String>) -> Self {
        self.ssh = Some(server.into());
        self
    }

    /// How to log in to SSH servers, instead of what `~/.ssh/config` says.
    #[cfg(feature = "ssh")]
    #[must_use]
    pub fn ssh_settings(mut self, settings: ipbroker_protocol::ssh::Settings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// Where the connection file is.
    ///
    /// # Errors
    /// When there is no home directory to look in.
    pub fn connection_file(&self) -> Result<PathBuf> {
        match &self.file {
            Some(path) => Ok(path.clone()),
            None => Ok(Profile::find(
                self.profile.as_deref(),
                self.profile_dir.as_deref(),
                self.cluster_id.as_deref(),
            )?
            .connection_file(Role::Client)),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// No connection file, nobody there, or somebody with another key: [`Error`] says which and what to do.
    pub fn connect(&self) -> Result<Client> {
        let path = self.connection_file()?;
        match &self.ssh {
            Some(server) => self.connect_through(server, &path, None),
            None if !path.exists() => Err(Error::NoConnectionFile { path }),
            None => {
                let connection: ClientConnection = connection::load(&path)?;
                match connection.common.gateway().map(str::to_owned) {
                    Some(server) => self.connect_through(&server, &path, Some(connection)),
                    None => Client::connect(connection, &path, self, None),
                }
            }
        }
    }

    #[cfg(feature = "ssh")]
    fn connect_through(
        &self,
        server: &str,
        path: &Path,
        connection: Option<ClientConnection>,
    ) -> Result<Client> {
        let settings = match &self.settings {
            Some(settings) => settings.clone(),
            None => Settings::load(None)?,
        };
        let gateway = Gateway::connect(settings, server)?;
        let mut origin = path.to_owned();
        let mut connection = match connection {
            Some(connection) => connection,
            None if self.file.is_some() && path.exists() => connection::load(path)?,
            None => {
                // A file that was copied here may be older than the controller's own.
                let name = path
                    .file_name()
                    .map(|n| n.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let profile = self.profile.as_deref().unwrap_or("default");
                let dir = match &self.file {
                    Some(file) => Some(file.parent().unwrap_or(Path::new(".")).to_owned()),
                    None => self.profile_dir.as_ref().map(|dir| dir.join("security")),
                };
                let relative = if dir.is_some() {
                    name
                } else {
                    format!("security/{name}")
                };
                match gateway.fetch(dir.as_deref(), profile, &relative)? {
                    Some(bytes) => {
                        origin = PathBuf::from(format!("{server}:{relative}"));
                        serde_json::from_slice(&bytes).map_err(|source| {
                            connection::ConnectionError::Format {
                                path: origin.clone(),
                                source,
                            }
                        })?
                    }
                    None if path.exists() => connection::load(path)?,
                    None => {
                        return Err(Error::NoConnectionFile {
                            path: PathBuf::from(format!("{server}:{relative}")),
                        });
                    }
                }
            }
        };
        let forwards = gateway.client(&mut connection)?;
        Client::connect(connection, &origin, self, Some(forwards))
    }

    #[cfg(not(feature = "ssh"))]
    fn connect_through(
        &self,
        server: &str,
        _: &Path,
        _: Option<ClientConnection>,
    ) -> Result<Client> {
        Err(Error::NoSsh {
            server: server.to_owned(),
        })
    }
}

/// A connection to a controller. Clones share it; the last one closes it.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
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

impl Client {
    /// Which cluster to connect to.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    fn connect(
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
        let answer =
            client.query_envelope(Channel::Hub, types::CONNECTION_REQUEST, &Empty {}, left);
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
        let reply: ConnectionReply = client.unpack(&answer)?;
        client.inner.engines.replace(
            reply
                .engines
                .into_iter()
                .filter_map(|(id, uuid)| Some((id.parse().ok()?, uuid))),
        );
        Ok(client)
    }

    /// Engine numbers, in order.
    pub fn ids(&self) -> Vec<u32> {
        self.inner.engines.all().into_keys().collect()
    }

    /// How many engines there are.
    pub fn engine_count(&self) -> usize {
        self.inner.engines.len()
    }

    /// Engine numbers and uuids.
    pub fn engine_uuids(&self) -> std::collections::BTreeMap<u32, String> {
        self.inner.engines.all()
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

    /// The connection file's content.
    pub fn connection(&self) -> &ClientConnection {
        &self.inner.connection
    }

    pub(crate) fn session(&self) -> &Session {
        &self.inner.session
    }

    /// Submits a task (or, with `metadata.array`, many) to the scheduler; results go to `sink` as they come.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn submit<C: Serialize + ?Sized>(
        &self,
        task: Outgoing<'_, C>,
        sink: Arc<dyn Sink>,
    ) -> Result<String> {
        let members = task.metadata.array;
        let ack = task.metadata.ack;
        let Built {
            number,
            msg_id,
            envelope,
        } = wire::build(
            &self.inner.session,
            None,
            task.msg_type,
            task.metadata,
            task.content,
            task.buffers,
        );
        self.inner
            .handle
            .send(Request::Submit(Box::new(Submission {
                number,
                channel: Channel::Task,
                envelope,
                members: members.unwrap_or(1),
                array: members.is_some(),
                ack,
                engines: Vec::new(),
                sink,
                tag: task.tag,
            })))?;
        Ok(msg_id)
    }

    /// A call with maps that are packed already, ready for [`Client::submit_all`].
    pub(crate) fn prepare(
        &self,
        msg_type: &str,
        (metadata, content): (&[u8], &[u8]),
        buffers: Vec<Message>,
        (sink, tag, ack): (Arc<dyn Sink>, u64, bool),
    ) -> Submission {
        let Built {
            number, envelope, ..
        } = wire::build_packed(
            &self.inner.session,
            None,
            msg_type,
            metadata,
            content,
            buffers,
        );
        Submission {
            number,
            channel: Channel::Task,
            envelope,
            members: 1,
            array: false,
            ack,
            engines: Vec::new(),
            sink,
            tag,
        }
    }

    /// Submits what was prepared.
    pub(crate) fn submit_all(&self, submissions: Vec<Submission>) -> Result<()> {
        self.inner.handle.send(Request::SubmitAll(submissions))
    }

    /// Sends a task to one engine, past the scheduler.
    pub(crate) fn submit_direct<C: Serialize + ?Sized>(
        &self,
        engine: &str,
        task: Outgoing<'_, C>,
        sink: Arc<dyn Sink>,
    ) -> Result<String> {
        let Built {
            number,
            msg_id,
            envelope,
        } = wire::build(
            &self.inner.session,
            Some(engine),
            task.msg_type,
            task.metadata,
            task.content,
            task.buffers,
        );
        self.inner
            .handle
            .send(Request::Submit(Box::new(Submission {
                number,
                channel: Channel::Mux,
                envelope,
                members: 1,
                array: false,
                ack: false,
                engines: vec![engine.to_owned()],
                sink,
                tag: task.tag,
            })))?;
        Ok(msg_id)
    }

    /// Sends one task to many engines through the broadcast tree; member `i` of the result is that of `engines[i]`.
    pub(crate) fn submit_broadcast<M: Serialize, C: Serialize + ?Sized>(
        &self,
        engines: Vec<String>,
        (msg_type, metadata, content): (&str, &M, &C),
        buffers: Vec<Message>,
        sink: Arc<dyn Sink>,
    ) -> Result<String> {
        let Built {
            number,
            msg_id,
            envelope,
        } = wire::build(
            &self.inner.session,
            None,
            msg_type,
            metadata,
            content,
            buffers,
        );
        self.inner
            .handle
            .send(Request::Submit(Box::new(Submission {
                number,
                channel: Channel::Broadcast,
                envelope,
                members: engines.len() as u64,
                array: false,
                ack: false,
                engines,
                sink,
                tag: 0,
            })))?;
        Ok(msg_id)
    }

    fn query_envelope<C: Serialize + ?Sized>(
        &self,
        channel: Channel,
        msg_type: &str,
        content: &C,
        timeout: Duration,
    ) -> Result<Envelope> {
        let session = &self.inner.session;
        let Built {
            number, envelope, ..
        } = wire::build(session, None, msg_type, &Empty {}, content, Vec::new());
        let (answer, receive) = crossbeam_channel::bounded(1);
        self.inner.handle.send(Request::Query {
            number,
            channel,
            envelope,
            answer,
        })?;
        match receive.recv_timeout(timeout) {
            Ok(envelope) => Ok(envelope),
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
        let answer = self.query_envelope(Channel::Hub, msg_type, content, self.inner.timeout)?;
        self.refusal(msg_type, &answer)?;
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
        let limit = self.inner.timeout;
        self.ask_engine(
            Channel::Control,
            engine,
            (msg_type, content),
            Vec::new(),
            limit,
        )
    }

    /// Sends a file operation to one engine and waits for the answer.
    pub(crate) fn fs<C: Serialize + ?Sized>(
        &self,
        engine: &str,
        content: &C,
        buffers: Vec<Message>,
        limit: Duration,
    ) -> Result<Envelope> {
        self.ask_engine(
            Channel::Mux,
            engine,
            (types::FS_REQUEST, content),
            buffers,
            limit,
        )
    }

    fn ask_engine<C: Serialize + ?Sized>(
        &self,
        channel: Channel,
        engine: &str,
        (msg_type, content): (&str, &C),
        buffers: Vec<Message>,
        limit: Duration,
    ) -> Result<Envelope> {
        let session = &self.inner.session;
        let Built {
            number, envelope, ..
        } = wire::build(session, Some(engine), msg_type, &Empty {}, content, buffers);
        let (answer, receive) = crossbeam_channel::bounded(1);
        self.inner.handle.send(Request::Query {
            number,
            channel,
            envelope,
            answer,
        })?;
        receive
            .recv_timeout(limit)
            .map_err(|_| Error::QueryTimeout {
                request: msg_type.to_owned(),
                seconds: limit.as_secs_f64(),
            })
    }
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct ConnectionReply {
    engines: std::collections::BTreeMap<String, String>,
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
