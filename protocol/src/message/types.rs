//! Message types, as `msg_type` has them.

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => { $($(#[$doc])* pub const $name: &str = $text;)* };
}

types! {
    /// Several messages that travel as one.
    BUNDLE = "bundle";
    /// A shell command to run.
    COMMAND_REQUEST = "command_request";
    /// Its outcome.
    COMMAND_REPLY = "command_reply";
    /// A call of a function that the engine has by name.
    FUNCTION_REQUEST = "function_request";
    /// Its outcome.
    FUNCTION_REPLY = "function_reply";
    /// A pickled call (Python engines).
    APPLY_REQUEST = "apply_request";
    /// Its outcome.
    APPLY_REPLY = "apply_reply";
    /// Code to execute (Python engines).
    EXECUTE_REQUEST = "execute_request";
    /// Its outcome.
    EXECUTE_REPLY = "execute_reply";
    /// The controller has taken tasks.
    SUBMIT_ACK = "submit_ack";
    /// The client has received results.
    RESULT_ACK = "result_ack";
    /// A client asks what became of its tasks after a reconnection.
    RESUME_REQUEST = "resume_request";
    /// What is unknown, what still waits; the rest follows as replies.
    RESUME_REPLY = "resume_reply";
    /// A client says that it lives.
    LEASE_REQUEST = "lease_request";
    /// Which controller answers, and how long the lease is.
    LEASE_REPLY = "lease_reply";
    /// Return unstarted tasks.
    GIVE_BACK_REQUEST = "give_back_request";
    /// One unstarted task, returned.
    GIVEN_BACK = "given_back";
    /// What does an engine hold?
    HOLDS_REQUEST = "holds_request";
    /// What it holds.
    HOLDS_REPLY = "holds_reply";
    /// An engine leaves: it is to be given nothing more.
    LEAVE_REQUEST = "leave_request";
    /// All that was given to these engines came before this.
    LEAVE_REPLY = "leave_reply";
    /// The last word of an engine: what it had, it has answered or given back.
    LEFT_NOTICE = "left_notice";
    /// How many of an engine's calls wait for other tasks.
    WAITS_NOTICE = "waits_notice";
    /// Tasks that an engine has received on the pure path.
    RECEIVED_NOTICE = "received_notice";
    /// How far an engine's clock is ahead of the controller's.
    CLOCK_NOTICE = "clock_notice";
    /// Replies that the controller holds safely.
    REPLY_ACK = "reply_ack";
    /// An engine process is gone; from its reaper.
    ENGINE_DIED = "engine_died";
    /// The hub has heard of it.
    ENGINE_DIED_REPLY = "engine_died_reply";
    /// Abort tasks.
    ABORT_REQUEST = "abort_request";
    /// What became of an abort request.
    ABORT_REPLY = "abort_reply";
    /// Why does a task wait?
    EXPLAIN_REQUEST = "explain_request";
    /// Why it does.
    EXPLAIN_REPLY = "explain_reply";
    /// What has a running task written?
    OUTPUT_REQUEST = "output_request";
    /// What it has.
    OUTPUT_REPLY = "output_reply";
    /// Which tasks of a submission wait for which?
    GRAPH_REQUEST = "graph_request";
    /// The tasks, and what each waits for.
    GRAPH_REPLY = "graph_reply";
    /// Which tasks have these words in them?
    SEARCH_REQUEST = "search_request";
    /// The newest of them.
    SEARCH_REPLY = "search_reply";
    /// Statistics of nodes and job servers.
    STATS_REQUEST = "stats_request";
    /// Statistics of nodes and job servers.
    STATS_REPLY = "stats_reply";
    /// Where is the page?
    WEB_REQUEST = "web_request";
    /// Where it is.
    WEB_REPLY = "web_reply";
    /// Which engines are there?
    ENGINES_REQUEST = "engines_request";
    /// The engines, one map each.
    ENGINES_REPLY = "engines_reply";
    /// How is the cluster?
    STATUS_REQUEST = "status_request";
    /// Tasks, engines, clients, store.
    STATUS_REPLY = "status_reply";
    /// What is the cluster doing?
    EVENTS_REQUEST = "events_request";
    /// A sample of it.
    EVENTS_REPLY = "events_reply";
    /// How did past tasks end, array by array?
    REPLIES_REQUEST = "replies_request";
    /// The replies of engines as they are kept.
    REPLIES_REPLY = "replies_reply";
    /// A file operation on an engine's host.
    FS_REQUEST = "fs_request";
    /// Its outcome.
    FS_REPLY = "fs_reply";
    /// An engine registers.
    REGISTRATION_REQUEST = "registration_request";
    /// Its id and its heartbeat.
    REGISTRATION_REPLY = "registration_reply";
    /// The controller does not know this engine (any more): register again.
    REREGISTER_NOTICE = "reregister_notice";
    /// An engine leaves.
    UNREGISTRATION_REQUEST = "unregistration_request";
    /// An engine has joined.
    REGISTRATION_NOTIFICATION = "registration_notification";
    /// An engine has left.
    UNREGISTRATION_NOTIFICATION = "unregistration_notification";
    /// The controller is going down.
    SHUTDOWN_NOTIFICATION = "shutdown_notification";
    /// A client connects.
    CONNECTION_REQUEST = "connection_request";
    /// The engines there are.
    CONNECTION_REPLY = "connection_reply";
    /// End an engine, or the controller.
    SHUTDOWN_REQUEST = "shutdown_request";
    /// It ends.
    SHUTDOWN_REPLY = "shutdown_reply";
    /// More engines, or fewer.
    SCALE_REQUEST = "scale_request";
    /// Deliver a signal to an engine's task.
    SIGNAL_REQUEST = "signal_request";
    /// Delivered.
    SIGNAL_REPLY = "signal_reply";
}
