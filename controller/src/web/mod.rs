//! `ipctl --web`: the page, its stream of samples, and metrics, over HTTP on this host alone.
//!
//! One thread serves all connections and carries nothing else: it asks the hub by message, as every thread does, and finds
//! samples in a place that holds the newest only, so that whoever reads slowly misses some instead of making them wait.
//! Nobody is answered without the token, and what a browser says of where a request comes from must be this page.

mod metrics;

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    io,
    net::{Ipv4Addr, TcpListener},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming},
    header::{self, HeaderMap, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipbroker_protocol::message::types;
use ipbroker_protocol::spawn;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot, watch};

use self::metrics::Format;
use crate::{
    hub::{
        Event,
        watch::{Past, Snapshot},
    },
    mailbox::Post,
};

/// Connections at once; for one more another goes (`Place`).
const CONNECTIONS: usize = 128;

/// A request's head must have come by then, and so must the next one on the same connection.
const HEAD: Duration = Duration::from_secs(10);

/// A body must have come by then, and the hub must have answered.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection whose other end reads nothing for so long is closed.
const STALLED: Duration = Duration::from_secs(30);

/// The largest body of a request.
const BODY: usize = 1 << 20;

/// Without news a stream says that it lives.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What the page may ask of the hub; with `true`, it changes something.
const REQUESTS: [(&str, bool); 9] = [
    (types::STATUS_REQUEST, false),
    (types::EXPLAIN_REQUEST, false),
    (types::OUTPUT_REQUEST, false),
    (types::GRAPH_REQUEST, false),
    (types::SEARCH_REQUEST, false),
    ("result_request", false),
    (types::ABORT_REQUEST, true),
    ("resubmit_request", true),
    (types::SCALE_REQUEST, true),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Everything that the thread is made of.
pub(crate) struct Web {
    /// Who may ask.
    pub(crate) token: String,
    /// Nothing may be changed.
    pub(crate) readonly: bool,
    /// Engines can be added.
    pub(crate) adds: bool,
    /// To the hub.
    pub(crate) hub: Post<Event>,
    /// The newest sample; the thread ends when the hub has dropped its end.
    pub(crate) samples: watch::Receiver<Arc<Snapshot>>,
}

/// Binds a port of the loopback interface; 0: any.
///
/// # Errors
/// When it is taken.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Web {
    /// Starts the thread; `listener` is bound on the loopback interface.
    ///
    /// # Errors
    /// When the process has no threads or descriptors left.
    pub(crate) fn spawn(self, listener: TcpListener) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        spawn("web", move || {
            let local = tokio::task::LocalSet::new();
            if let Err(error) = local.block_on(&runtime, self.serve(listener)) {
                tracing::error!(%error, "the page's thread has ended");
            }
        })
    }

    async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut samples = self.samples.clone();
        let site = Rc::new(Site {
            page: include_str!("page.html").replace("{token}", &self.token),
            web: self,
        });
        let mut places: Vec<(Rc<Place>, oneshot::Sender<()>)> = Vec::new();
        let mut ended = pin!(async move { while samples.changed().await.is_ok() {} });
        loop {
            let accepted = poll_fn(|context| {
                if ended.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                listener.poll_accept(context).map(Some)
            });
            let stream = match accepted.await {
                None => return Ok(()),
                Some(Ok((stream, _))) => stream,
                Some(Err(error)) => {
                    // No descriptors: the hub says so. One that was gone again at once is no matter.
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            places.retain(|(_, stay)| !stay.is_closed());
            if places.len() >= CONNECTIONS {
                places.sort_by_key(|(place, _)| (place.trusted.get(), place.alive.get()));
                places.remove(0);
            }
            let place = Rc::new(Place {
                trusted: Cell::new(false),
                alive: Cell::new(Instant::now()),
            });
            let (stay, gone) = oneshot::channel();
            places.push((place.clone(), stay));
            tokio::task::spawn_local(connection(site.clone(), stream, place, gone));
        }
    }
}

/// A connection among others: when there are too many, one that has not shown the token goes first, and of those alike the
/// one that has been silent longest, so that whoever stays and reads nothing keeps nobody out.
struct Place {
    /// A request on it has had the token.
    trusted: Cell<bool>,
    /// When it asked for something, or had room for more of what it had asked for.
    alive: Cell<Instant>,
}

/// Serves one connection to its end, or until its place is needed: then `gone` is ready.
async fn connection(
    site: Rc<Site>,
    stream: tokio::net::TcpStream,
    place: Rc<Place>,
    mut gone: oneshot::Receiver<()>,
) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let (site, place) = (site.clone(), place.clone());
        async move {
            place.alive.set(Instant::now());
            Ok::<_, Infallible>(site.answer(request, &place).await)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut look = tokio::time::interval(Duration::from_secs(1));
    poll_fn(|context| {
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if Pin::new(&mut gone).poll(context).is_ready() {
            return Poll::Ready(());
        }
        while look.poll_tick(context).is_ready() {
            if place.alive.get().elapsed() > STALLED + ANSWER {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}

/// What is served, and to whom.
struct Site {
    page: String,
    web: Web,
}

type Answer = Response<Sent>;

impl Site {
    async fn answer(self: Rc<Self>, request: Request<Incoming>, place: &Rc<Place>) -> Answer {
        let mut response = match self.refusal(request.method(), request.uri(), request.headers()) {
            Some((status, why)) => text(status, why),
            None => {
                place.trusted.set(true);
                self.route(request, place).await
            }
        };
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert(
            "cross-origin-resource-policy",
            HeaderValue::from_static("same-origin"),
        );
        response
    }

    /// Why a request is not answered, if so.
    fn refusal(
        &self,
        method: &Method,
        uri: &hyper::Uri,
        headers: &HeaderMap,
    ) -> Option<(StatusCode, &'static str)> {
        // A name that leads here only because somebody's name server says so is not ours.
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let Some(host) = host.filter(|host| is_local(host)) else {
            return Some((StatusCode::FORBIDDEN, "ask for 127.0.0.1 or localhost\n"));
        };
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin
                .to_str()
                .ok()
                .and_then(|origin| origin.strip_prefix("http://"))
                .is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        {
            return Some((StatusCode::FORBIDDEN, "asked for by another page\n"));
        }
        let bearer = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token);
        let query = uri.query().unwrap_or_default().split('&');
        let in_url = query.filter_map(|pair| pair.strip_prefix("token=")).next();
        match bearer.or(in_url) {
            None => Some((
                StatusCode::UNAUTHORIZED,
                "open the address that ipctl has printed, or send its token: Authorization: Bearer TOKEN\n",
            )),
            Some(token) if !bool::from(token.as_bytes().ct_eq(self.web.token.as_bytes())) => {
                Some((StatusCode::FORBIDDEN, "not the token of this controller\n"))
            }
            Some(_) if !matches!(*method, Method::GET | Method::HEAD | Method::POST) => {
                Some((StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD or POST\n"))
            }
            Some(_) => None,
        }
    }

    async fn route(self: Rc<Self>, request: Request<Incoming>, place: &Rc<Place>) -> Answer {
        let path = request.uri().path().to_owned();
        if let Some(name) = path.strip_prefix("/ask/") {
            return self.ask(name, request).await;
        }
        // Of what answers a HEAD request, hyper sends the head.
        if request.method() == Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        }
        match path.as_str() {
            "/" => full("text/html; charset=utf-8", self.page.clone()),
            "/page.js" => full("text/javascript; charset=utf-8", include_str!("page.js")),
            "/page.css" => full("text/css; charset=utf-8", include_str!("page.css")),
            "/metrics" => {
                let accept = request.headers().get(header::ACCEPT);
                let accept = accept.and_then(|accept| accept.to_str().ok());
                let format = Format::accepted(accept.unwrap_or_default());
                match self.snapshot().await {
                    Some(snapshot) => full(format.content_type(), metrics::text(&snapshot, format)),
                    None => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the controller does not answer\n",
                    ),
                }
            }
            "/events" => {
                let (send, receive) = mpsc::channel(1);
                tokio::task::spawn_local(self.stream(send));
                let mut response = Response::new(Sent::Stream(receive, place.clone()));
                let value = HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(header::CONTENT_TYPE, value);
                response
            }
            _ => text(StatusCode::NOT_FOUND, "there is /, /events and /metrics\n"),
        }
    }

    /// Runs `what` on the hub's thread.
    fn hub(&self, what: impl FnOnce(&mut crate::hub::Hub) + Send + 'static) {
        self.web.hub.send(Event::Continue(Box::new(what)));
    }

    /// The next sample; none: the hub is gone.
    async fn snapshot(&self) -> Option<Snapshot> {
        let (send, receive) = oneshot::channel();
        self.hub(|hub| {
            hub.sample_then(move |_, snapshot| drop(send.send(snapshot.clone())));
        });
        tokio::time::timeout(ANSWER, receive).await.ok()?.ok()
    }

    /// Sends samples until there is nobody who reads them.
    async fn stream(self: Rc<Self>, send: mpsc::Sender<Bytes>) {
        let (answer, past) = oneshot::channel();
        let mut samples = self.web.samples.clone();
        samples.mark_unchanged();
        self.hub(|hub| drop(answer.send(hub.past())));
        let Ok(Past { points, slices }) = past.await else {
            return;
        };
        let past = json!({"points": points, "slices": slices, "readonly": self.web.readonly, "adds": self.web.adds});
        if send.send(event("past", &past)).await.is_err() {
            return;
        }
        loop {
            match tokio::time::timeout(KEEPALIVE, samples.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    if send.send(Bytes::from_static(b":\n\n")).await.is_err() {
                        return;
                    }
                    continue;
                }
            }
            let snapshot = samples.borrow_and_update().clone();
            if send.send(event("sample", &snapshot.sample)).await.is_err() {
                return;
            }
        }
    }

    /// A request to the hub.
    async fn ask(&self, name: &str, request: Request<Incoming>) -> Answer {
        let Some((name, changes)) = REQUESTS.iter().find(|(known, _)| *known == name) else {
            return text(StatusCode::NOT_FOUND, "no such request\n");
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
        }
        if *changes && self.web.readonly {
            let why = "this page is read-only: ipctl runs with --web-readonly\n";
            return text(StatusCode::FORBIDDEN, why);
        }
        // A form of another page cannot say so.
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return text(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "application/json only\n",
            );
        }
        let body = Limited::new(request.into_body(), BODY).collect();
        let content: Value = match tokio::time::timeout(ANSWER, body).await {
            Ok(Ok(body)) => match serde_json::from_slice(&body.to_bytes()) {
                Ok(content @ Value::Object(_)) => content,
                _ => return text(StatusCode::BAD_REQUEST, "the body is no JSON object\n"),
            },
            Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the body is too long or broken\n"),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body did not come\n"),
        };
        let (send, mut receive) = mpsc::unbounded_channel();
        let name = *name;
        if *changes {
            tracing::info!(request = name, "asked for on the page");
        }
        self.hub(move |hub| hub.page_request(name, content, send));
        match tokio::time::timeout(ANSWER, receive.recv()).await {
            Ok(Some(answer)) => full("application/json", answer.to_string()),
            _ => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the controller does not answer\n",
            ),
        }
    }
}

/// Whether a Host header names this host, whatever the port (a tunnel has one of its own).
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "127.0.0.1" | "[::1]") || name.eq_ignore_ascii_case("localhost")
}

fn event(name: &str, data: &impl serde::Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

fn full(kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Sent::Whole(Some(body.into())));
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, why: &'static str) -> Answer {
    let mut response = full("text/plain; charset=utf-8", why);
    *response.status_mut() = status;
    response
}

/// The body of an answer.
enum Sent {
    Whole(Option<Bytes>),
    /// Asked for the next piece only when there is room for it: the time of that is noted.
    Stream(mpsc::Receiver<Bytes>, Rc<Place>),
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(receive, place) => {
                place.alive.set(Instant::now());
                receive
                    .poll_recv(context)
                    .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                hyper::body::SizeHint::with_exact(length)
            }
            Self::Stream(..) => hyper::body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_ours() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost:9",
            "LOCALHOST:9",
            "Localhost",
            "[::1]:1",
            "[::1]",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "127.0.0.1.evil.example:80",
            "LOCALHOST.evil.example",
            "notlocalhost:80",
            "evil.example/LOCALHOST:80",
            "evil.example@localhost",
            "localhost:x",
            "a:80",
            "127.0.0.1:1:2",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
