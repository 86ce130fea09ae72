//! Starts the controller's threads, and ends them.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_channel::Sender;
#[cfg(feature = "web")]
use ipbroker_protocol::message::WebReply;
use ipbroker_protocol::{junk::JunkTotal, session::Session, zmq::Context};

use super::{AppError, MainEvent, Settings, bind, bind::Ports, files};
use crate::{
    hub::{self, Event, Links},
    launch::batch::Ways,
    mailbox::{Post, mailbox},
    relay::{control, iopub, mux},
    scheduler::{
        command::Command,
        core::{Config, Demand, Scheme, scheme},
        pure::PureThread,
        task::TaskThread,
    },
    store::{self, Backend, Store},
};

/// A controller that runs.
pub(crate) struct Controller {
    pub(crate) ports: Ports,
    events: Post<Event>,
    links: Links,
    hub: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
    store: Store,
    /// Lives as long as its sockets.
    _context: Context,
}

/// Binds everything and starts all threads. `own`: the scheme, if it is none of the built-in ones.
pub(super) fn start(
    settings: &Settings,
    own: Option<Box<dyn Scheme>>,
    main: &Sender<MainEvent>,
) -> Result<Controller, AppError> {
    let context = Context::new();
    // One thread has sockets to serve most of the time, two sleep and are woken: that costs more than it brings, unless
    // there are cores to spare.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    context
        .set_io_threads(if cores > 2 { 2 } else { 1 })
        .map_err(|error| AppError::system("cannot start ZeroMQ")(error.into()))?;
    let mut options = store::Options::new(settings.profile.dir());
    options.name = settings.store_name();
    options.backend = settings.backend.clone();
    options.keep = settings.tasks.keep;
    options.sync = settings.tasks.sync;
    options.restore = settings.network.restore;
    options.packing = settings.packer;
    let (store, journal, handle, recovered) = store::open(&options)?;
    let bound = bind::bind(settings, &context)?;
    // Also with a history in memory: what is recorded there must be whole.
    let durable = settings.backend != Backend::None;
    let ping = Duration::from_millis(settings.network.ping);
    let junk = JunkTotal::default();
    let session = || Session::new(settings.key.as_bytes(), settings.packer);
    let mut others = Vec::new();

    let (tasks, commands) =
        mailbox::<Command>().map_err(AppError::system("cannot make a mailbox"))?;
    let (clients, engines) = bound.task;
    let stop = main.clone();
    let spawn = |name: &str, run: Box<dyn FnOnce() -> io::Result<()> + Send>| {
        ipbroker_protocol::spawn(name, move || {
            if let Err(error) = run() {
                tracing::error!(%error, "the task thread has failed");
                let _ = stop.send(MainEvent::Stop("the task thread has failed".into()));
            }
        })
    };
    let session_of_tasks = Arc::new(session());
    let thread = if let Some(monitor) = bound.pure_monitor {
        let pure = PureThread {
            clients,
            engines,
            monitor,
            session: session_of_tasks,
            commands,
            junk: junk.clone(),
        };
        spawn("pure", Box::new(move || pure.run()))
    } else {
        let scheme = own
            .or_else(|| scheme(&settings.tasks.scheme))
            .ok_or_else(|| {
                AppError::Usage(format!(
                    "no scheme {:?}: see ipctl --help",
                    settings.tasks.scheme
                ))
            })?;
        let limit = ping * (settings.network.misses + 1);
        let config = Config {
            hwm: settings.tasks.hwm,
            seed: rand::random(),
            lookups: settings.backend != Backend::None,
            restore_limit: u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
            ..Config::default()
        };
        let task = TaskThread {
            clients,
            engines,
            session: session_of_tasks,
            scheme,
            config,
            journal,
            store: handle.clone(),
            durable,
            recovered,
            commands,
            junk: junk.clone(),
        };
        spawn("task", Box::new(move || task.run()))
    };
    others.push(thread.map_err(AppError::system("cannot start the task thread"))?);

    let (mux, thread) = mux::spawn(bound.mux, session(), handle.clone(), &junk)
        .map_err(AppError::system("cannot start the direct relay"))?;
    others.push(thread);
    let (clients, engines) = bound.control;
    let (control, thread) = control::spawn(clients, engines, session(), tasks.clone(), &junk)
        .map_err(AppError::system("cannot start the control relay"))?;
    others.push(thread);
    let (events, event_box) =
        mailbox::<Event>().map_err(AppError::system("cannot make a mailbox"))?;
    let to_hub = events.clone();
    let stopped = move |uuid| to_hub.send(Event::EngineStopped(uuid));
    let (iopub, thread) = iopub::spawn(
        bound.iopub,
        session(),
        handle.recorder(),
        control.clone(),
        stopped,
        &junk,
    )
    .map_err(AppError::system("cannot start the output relay"))?;
    others.push(thread);

    let links = Links {
        tasks,
        mux,
        control,
        iopub,
        store: handle,
    };
    #[cfg(feature = "web")]
    let page = match settings.web.web {
        Some(port) => {
            let (place, web, thread) = page(settings, port, &events)?;
            others.push(thread);
            (Some(place), Some(web))
        }
        None => (None, None),
    };
    #[cfg(not(feature = "web"))]
    let page = (None, None);
    let hub_settings = hub::Settings {
        page: page.0,
        web: page.1,
        ping,
        misses: settings.network.misses,
        lease: settings.network.lease,
        incarnation: uuid::Uuid::new_v4().to_string(),
        durable,
        scheme: settings.tasks.scheme.clone(),
        connection_info: files::connection_info(settings, &bound.ports),
        state_file: settings.state_file(),
        restore: settings.network.restore,
        adds: settings.local_engines > 0,
    };
    let tell = main.clone();
    let tell = move |notice| drop(tell.send(MainEvent::Engine(notice)));
    let hub = hub::spawn(
        hub_settings,
        bound.hub,
        links.clone(),
        (events.clone(), event_box),
        session(),
        &junk,
        tell,
    )
    .map_err(AppError::system("cannot start the hub"))?;
    Ok(Controller {
        ports: bound.ports,
        events,
        links,
        hub,
        others,
        store,
        _context: context,
    })
}

/// Starts the page: where its samples go, and its thread.
#[cfg(feature = "web")]
fn page(
    settings: &Settings,
    port: u16,
    events: &Post<hub::Event>,
) -> Result<(hub::watch::Place, WebReply, JoinHandle<()>), AppError> {
    use crate::web::{self, Web};

    let listener = web::listen(port).map_err(|error| AppError::Bind {
        url: format!("http://127.0.0.1:{port}"),
        reason: error.to_string(),
        hint: ", or another port with --web=PORT",
    })?;
    let port = listener
        .local_addr()
        .map_err(AppError::system("cannot make the page's socket"))?
        .port();
    let token = files::web_token(settings)?;
    let at = WebReply {
        port,
        token: token.clone(),
    };
    let (place, samples) = tokio::sync::watch::channel(Arc::default());
    let web = Web {
        token,
        readonly: settings.web.web_readonly,
        adds: settings.local_engines > 0,
        hub: events.clone(),
        samples,
    };
    let thread = web
        .spawn(listener)
        .map_err(AppError::system("cannot start the page"))?;
    tell_address(settings, &at.url(port));
    Ok((place, at, thread))
}

/// Prints where the page is.
#[cfg(feature = "web")]
fn tell_address(settings: &Settings, url: &str) {
    use io::Write;

    // Whoever closed standard output does not want to know.
    let _ = writeln!(io::stdout(), "{url}").and_then(|()| io::stdout().flush());
    if !super::settings::is_loopback(settings.interface.trim_start_matches("tcp://")) {
        tracing::info!(
            "the page is on 127.0.0.1 only; from another host: `ipclient --ssh {} web`",
            settings.location
        );
    }
}

impl Controller {
    /// What a launcher asks and tells.
    pub(crate) fn ways(&self) -> Ways {
        let (tasks, hub) = (self.links.tasks.clone(), self.events.clone());
        let counts = tasks.clone();
        Ways {
            demand: Box::new(move |limit, longest| {
                let (give, take) = crossbeam_channel::bounded(1);
                tasks.send(Command::Demand {
                    limit,
                    longest: longest.map(|time| time.as_nanos().try_into().unwrap_or(u64::MAX)),
                    answer: Box::new(move |demand| {
                        let _ = give.send(demand);
                    }),
                });
                // A controller that ends does not answer.
                let demand: Vec<Demand> = take.recv_timeout(Duration::from_secs(5)).ok()?;
                let of = |demand: Demand| (Duration::from_nanos(demand.time), demand.engines);
                Some(demand.into_iter().map(of).collect())
            }),
            given: Box::new(move || {
                let (give, take) = crossbeam_channel::bounded(1);
                counts.send(Command::Given(Box::new(move |given| {
                    let _ = give.send(given);
                })));
                take.recv_timeout(Duration::from_secs(5)).ok()
            }),
            tell: Box::new(move |batch| {
                hub.send(Event::Continue(Box::new(move |hub| {
                    hub.batch = Some(batch)
                })));
            }),
        }
    }

    /// Ends all threads; what they have taken is written. `engines`: engines of ours that are still there end too, and
    /// clients are told that no other controller will answer them.
    pub(crate) fn stop(self, engines: bool) {
        self.events.send(Event::Shutdown { engines });
        let join = |thread: JoinHandle<()>| {
            let name = thread.thread().name().unwrap_or("?").to_owned();
            if thread.join().is_err() {
                tracing::error!("the thread `{name}` has panicked");
            }
        };
        join(self.hub);
        self.links.tasks.send(Command::Shutdown);
        self.links.mux.send(mux::Request::Shutdown);
        self.links.iopub.send(iopub::Request::Shutdown);
        self.links.control.shutdown();
        for thread in self.others {
            join(thread);
        }
        self.store.close();
    }
}
