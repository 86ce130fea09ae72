//! Socket helpers: whole messages in and out, and CURVE.

use std::net::{IpAddr, ToSocketAddrs};

use zmq::{Context, Message, Socket, SocketType};

/// Routing ids of the controller's sockets towards engines, so that our engines can send to them first.
pub mod routing {
    /// The task scheduler (or the pure path's DEALER).
    pub const TASK: &[u8] = b"ipbroker.task";
    /// The direct relay.
    pub const MUX: &[u8] = b"ipbroker.mux";
    /// The control relay.
    pub const CONTROL: &[u8] = b"ipbroker.control";
    /// A broadcast leaf.
    #[must_use]
    pub fn broadcast(leaf: usize) -> Vec<u8> {
        format!("ipbroker.broadcast.{leaf}").into_bytes()
    }
}

/// The controller's CURVE key pair.
#[derive(Clone)]
pub struct CurveServer {
    /// The public key, Z85.
    pub public: String,
    secret: Vec<u8>,
}

/// A client's CURVE keys.
#[derive(Clone)]
pub struct CurveClient {
    server: Vec<u8>,
    public: Vec<u8>,
    secret: Vec<u8>,
}

/// A text that is no CURVE key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a CURVE key has 40 characters of Z85")]
pub struct BadKey;

fn key(text: &str) -> Result<Vec<u8>, BadKey> {
    zmq::z85_decode(text.trim())
        .ok()
        .filter(|key| key.len() == 32)
        .ok_or(BadKey)
}

fn z85(key: &[u8]) -> String {
    zmq::z85_encode(key).expect("32 bytes are a multiple of 4")
}

impl CurveServer {
    /// A fresh pair.
    ///
    /// # Errors
    /// When this libzmq has no CURVE.
    pub fn generate() -> zmq::Result<Self> {
        let pair = zmq::CurveKeyPair::new()?;
        Ok(Self {
            public: z85(&pair.public_key),
            secret: pair.secret_key.to_vec(),
        })
    }

    /// A pair from its Z85 halves.
    ///
    /// # Errors
    /// [`BadKey`] when one is no key.
    pub fn from_keys(public: &str, secret: &str) -> Result<Self, BadKey> {
        key(public)?;
        Ok(Self {
            public: public.trim().to_owned(),
            secret: key(secret)?,
        })
    }

    /// The secret key, Z85.
    #[must_use]
    pub fn secret(&self) -> String {
        z85(&self.secret)
    }

    /// Makes a socket a CURVE server; do it before binding.
    ///
    /// # Errors
    /// When this libzmq has no CURVE.
    pub fn apply(&self, socket: &Socket) -> zmq::Result<()> {
        socket.set_curve_server(true)?;
        socket.set_curve_secretkey(&self.secret)
    }

    /// The keys for a socket that connects to this server from inside its own process.
    ///
    /// # Errors
    /// [`BadKey`] when this libzmq has no CURVE.
    pub fn client(&self) -> Result<CurveClient, BadKey> {
        CurveClient::new(&self.public)
    }
}

impl std::fmt::Debug for CurveServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CurveServer({})", self.public)
    }
}

impl CurveClient {
    /// Keys towards a server: a pair of one's own from `$IPP_CURVE_PUBLICKEY` and `$IPP_CURVE_SECRETKEY`, else fresh.
    ///
    /// # Errors
    /// [`BadKey`] when a key is none.
    pub fn new(server: &str) -> Result<Self, BadKey> {
        let server = key(server)?;
        let own = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let (Some(public), Some(secret)) =
            (own("IPP_CURVE_PUBLICKEY"), own("IPP_CURVE_SECRETKEY"))
        {
            return Ok(Self {
                server,
                public: key(&public)?,
                secret: key(&secret)?,
            });
        }
        let pair = zmq::CurveKeyPair::new().map_err(|_| BadKey)?;
        Ok(Self {
            server,
            public: pair.public_key.to_vec(),
            secret: pair.secret_key.to_vec(),
        })
    }

    /// Makes a socket a CURVE client; do it before connecting.
    ///
    /// # Errors
    /// When this libzmq has no CURVE.
    pub fn apply(&self, socket: &Socket) -> zmq::Result<()> {
        socket.set_curve_serverkey(&self.server)?;
        socket.set_curve_publickey(&self.public)?;
        socket.set_curve_secretkey(&self.secret)
    }
}

impl std::fmt::Debug for CurveClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CurveClient")
    }
}

/// A socket without high-water marks (queues are accounted for by their owners) that does not hold up the process's end.
///
/// libzmq allows 1,023 sockets a context: a process with more makes more contexts.
///
/// # Errors
/// When the context has no sockets, or the process no descriptors left.
pub fn open(context: &Context, kind: SocketType) -> zmq::Result<Socket> {
    let socket = context.socket(kind)?;
    socket.set_sndhwm(0)?;
    socket.set_rcvhwm(0)?;
    socket.set_linger(1000)?;
    // Frames of the relays go both ways all the time; a peer that is gone must be noticed on idle links too.
    socket.set_tcp_keepalive(1)?;
    socket.set_tcp_keepalive_idle(30)?;
    socket.set_tcp_keepalive_intvl(10)?;
    socket.set_tcp_keepalive_cnt(3)?;
    Ok(socket)
}

/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 4096;

/// Messages of one connection that wait to be read by us; then it waits. What we send is bounded by its owners.
const RECEIVED: i32 = 1000;

/// Makes a socket ready to listen to anybody: no message larger than `max_message`. (Of messages in many frames only the
/// bundled libzmq keeps count: `libzmq.patch`.)
///
/// # Errors
/// As `zmq_setsockopt`.
pub fn bound(socket: &Socket, max_message: u64) -> zmq::Result<()> {
    socket.set_maxmsgsize(i64::try_from(max_message).unwrap_or(i64::MAX))?;
    socket.set_rcvhwm(RECEIVED)?;
    socket.set_backlog(BACKLOG)
}

/// A ROUTER that refuses to send into the void and lets a peer reconnect under its identity.
///
/// # Errors
/// As [`open`].
pub fn router(context: &Context) -> zmq::Result<Socket> {
    let socket = open(context, zmq::ROUTER)?;
    socket.set_router_mandatory(true)?;
    socket.set_router_handover(true)?;
    Ok(socket)
}

/// Binds to `tcp://ADDRESS:PORT`, port 0 for any free one, and returns the port.
///
/// # Errors
/// The system's word, e.g. that the port is in use.
pub fn bind(socket: &Socket, interface: &str, port: u16) -> zmq::Result<u16> {
    let port = if port == 0 {
        "*".to_owned()
    } else {
        port.to_string()
    };
    socket.bind(&format!("{interface}:{port}"))?;
    let endpoint = socket.get_last_endpoint()?.unwrap_or_default();
    Ok(endpoint
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .unwrap_or_default())
}

/// Receives one whole message into `frames`, without waiting. `false`: there is none.
///
/// # Errors
/// As `zmq_msg_recv`, but for `EAGAIN`.
pub fn recv(socket: &Socket, frames: &mut Vec<Message>) -> zmq::Result<bool> {
    frames.clear();
    // The rest of a message is always there once its first frame is.
    let mut flags = zmq::DONTWAIT;
    loop {
        let last = frames.len();
        frames.push(Message::new());
        let frame = &mut frames[last];
        match socket.recv(frame, flags) {
            Ok(()) if frame.get_more() => flags = 0,
            Ok(()) => return Ok(true),
            Err(error) => {
                let none = matches!(error, zmq::Error::EAGAIN | zmq::Error::EINTR);
                if none && last == 0 {
                    frames.clear();
                    return Ok(false);
                }
                return Err(error);
            }
        }
    }
}

/// Sends one whole message without waiting; the frames are moved.
///
/// # Errors
/// `EHOSTUNREACH` when a ROUTER knows no such peer, `EAGAIN` when its queue is full: then nothing was sent.
pub fn send(socket: &Socket, frames: impl IntoIterator<Item = Message>) -> zmq::Result<()> {
    let mut frames = frames.into_iter().peekable();
    let mut first = true;
    while let Some(frame) = frames.next() {
        let more = if frames.peek().is_some() {
            zmq::SNDMORE
        } else {
            0
        };
        // Only the first frame can be refused; after it a signal may interrupt, never part a message.
        socket.send(frame, more | if first { zmq::DONTWAIT } else { 0 })?;
        first = false;
    }
    Ok(())
}

/// The name that the system has for itself.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Whether a name or address is this host's own.
#[must_use]
pub fn is_this_host(location: &str) -> bool {
    let name = host_name();
    if location == name || location == "localhost" || name.split('.').next() == Some(location) {
        return true;
    }
    // An address is this host's when a socket can be bound to it.
    let local = |ip: IpAddr| ip.is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok();
    match location.parse::<IpAddr>() {
        Ok(ip) => local(ip),
        Err(_) => (location, 0)
            .to_socket_addrs()
            .is_ok_and(|mut all| all.any(|address| local(address.ip()))),
    }
}

/// Raises the process's limit of open descriptors to what the system allows, and returns it.
///
/// # Errors
/// When fewer than `needed` can be had: the text says which limit is in the way.
pub fn raise_descriptors(needed: u64) -> Result<u64, String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 20);
    let soft = limit.current.unwrap_or(hard);
    let mut have = soft;
    if soft < hard
        && setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(hard),
                maximum: limit.maximum,
            },
        )
        .is_ok()
    {
        have = hard;
    }
    if have < needed {
        return Err(format!(
            "{needed} open descriptors are needed and the hard limit is {have}: raise it with `ulimit -Hn {needed}` or in limits.conf"
        ));
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "bundled")]
    fn bundled_libzmq_has_curve() {
        assert_eq!(zmq::has("curve"), Some(true));
        assert_eq!(zmq::version(), (4, 3, 5));
    }

    #[test]
    #[cfg(feature = "bundled")]
    fn curve_keys_let_in_and_keep_out() {
        let context = Context::new();
        let server = CurveServer::generate().unwrap();
        let listen = router(&context).unwrap();
        server.apply(&listen).unwrap();
        let port = bind(&listen, "tcp://127.0.0.1", 0).unwrap();
        let connect = |curve: Option<CurveClient>| {
            let dealer = open(&context, zmq::DEALER).unwrap();
            dealer.set_linger(0).unwrap();
            if let Some(curve) = curve {
                curve.apply(&dealer).unwrap();
            }
            dealer.connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
            dealer.send("hello", 0).unwrap();
            dealer
        };
        let stranger = CurveServer::generate().unwrap();
        let _outside = [connect(None), connect(Some(stranger.client().unwrap()))];
        let _inside = connect(Some(server.client().unwrap()));
        assert_eq!(listen.poll(zmq::POLLIN, 5000).unwrap(), 1);
        let mut frames = Vec::new();
        assert!(recv(&listen, &mut frames).unwrap());
        assert_eq!(&frames[1][..], b"hello");
        assert_eq!(
            listen.poll(zmq::POLLIN, 200).unwrap(),
            0,
            "nobody else gets in"
        );
        assert!(CurveServer::from_keys("short", "shorter").is_err());
        let again = CurveServer::from_keys(&server.public, &server.secret()).unwrap();
        assert_eq!(again.public, server.public);
    }

    #[test]
    fn whole_messages_or_nothing() {
        let context = Context::new();
        let a = router(&context).unwrap();
        let port = bind(&a, "tcp://127.0.0.1", 0).unwrap();
        assert_eq!(
            send(&a, [Message::from("nobody"), Message::from("x")]),
            Err(zmq::Error::EHOSTUNREACH)
        );
        let b = open(&context, zmq::DEALER).unwrap();
        b.connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
        send(&b, ["1", "2", "3"].map(Message::from)).unwrap();
        assert_eq!(a.poll(zmq::POLLIN, 5000).unwrap(), 1);
        let mut frames = Vec::new();
        assert!(recv(&a, &mut frames).unwrap());
        assert_eq!(frames.len(), 4);
        assert!(!recv(&a, &mut frames).unwrap());
    }

    #[test]
    fn knows_its_own_host() {
        assert!(is_this_host("localhost"));
        assert!(is_this_host("127.0.0.1"));
        assert!(!is_this_host("192.0.2.1"));
    }
}
