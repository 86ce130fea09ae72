-- The history of an ipbroker controller. It may be read with `sqlite3 PROFILE_DIR/ipbroker.db` while the controller runs; only the
-- controller writes it.
--
-- Times are microseconds since 1970 in UTC: datetime(submitted / 1000000, 'unixepoch', 'localtime'). The view `tasks` has them so.
-- header, metadata, content and their result_ counterparts are packed as on the wire: MessagePack, or JSON in a JSON cluster.
-- buffers and result_buffers are lists of frames, each 0, u32 length, bytes, or 1, u64 offset, u64 length within the file
-- PROFILE_DIR/ipbroker.buffers/HEX(request_file or result_file, 16 digits), all little-endian. If content is NULL, it is the first.

CREATE TABLE IF NOT EXISTS meta (
    name            TEXT PRIMARY KEY,
    value
) WITHOUT ROWID;

-- One row a submission: an ordinary task, or an array of `count` tasks whose ids are msg_id:0 … msg_id:(count-1).
CREATE TABLE IF NOT EXISTS task (
    key             INTEGER PRIMARY KEY, -- grows with submission
    msg_id          TEXT NOT NULL,
    queue           TEXT,                -- task, mux, broadcast
    count           INTEGER NOT NULL DEFAULT 1,
    msg_type        TEXT,                -- apply_request, execute_request, command_request, function_request
    name            TEXT,                -- the start of a command, or a function's name
    label           TEXT,
    client          BLOB,                -- identity of the client's socket
    client_uuid     TEXT,                -- the client's session
    status          TEXT NOT NULL,       -- waiting, dispatched, ok, error, aborted; of an array: running until all have ended
    attempt         INTEGER NOT NULL DEFAULT 0, -- dispatches so far
    retries         INTEGER,             -- left, once one was used or it was given back; arrays: NULL
    engine_uuid     TEXT,
    code            INTEGER,             -- exit code of a command
    submitted       INTEGER,             -- by the client's clock
    arrived         INTEGER,             -- at the controller
    dispatched      INTEGER,
    started         INTEGER,
    completed       INTEGER,             -- NULL: not finished
    received        INTEGER,             -- the result, at the controller
    header          BLOB,
    parent_header   BLOB,                -- NULL: empty
    metadata        BLOB,
    content         BLOB,
    buffers         BLOB,
    request_file    INTEGER,
    result_header   BLOB,
    result_metadata BLOB,
    result_content  BLOB,
    result_buffers  BLOB,
    result_file     INTEGER,
    resubmitted     TEXT,                -- the msg_id it was submitted again by
    execute_input   TEXT,
    execute_result  TEXT,                -- JSON
    error           TEXT,                -- JSON
    stdout          TEXT,
    stderr          TEXT,
    extra           TEXT                 -- JSON of fields without a column
);
CREATE UNIQUE INDEX IF NOT EXISTS task_msg_id ON task (msg_id);
CREATE INDEX IF NOT EXISTS task_open ON task (key) WHERE completed IS NULL;
CREATE INDEX IF NOT EXISTS task_completed ON task (completed) WHERE completed IS NOT NULL;

-- Outcomes of an array's members lo … hi-1, as they came; where ranges overlap, the last one counts.
CREATE TABLE IF NOT EXISTS piece (
    id              INTEGER PRIMARY KEY,
    task            INTEGER NOT NULL,    -- task.key
    lo              INTEGER NOT NULL,
    hi              INTEGER NOT NULL,
    status          TEXT NOT NULL,       -- of all but the exceptions
    exceptions      BLOB,                -- u64 member, u8: 0 ok, 1 error, 2 aborted, 255 not ended (tried again)
    engine_uuid     TEXT,
    started         INTEGER,
    completed       INTEGER,
    received        INTEGER,
    result_header   BLOB,
    result_metadata BLOB,
    result_content  BLOB,
    result_buffers  BLOB,
    result_file     INTEGER
);
CREATE INDEX IF NOT EXISTS piece_task ON piece (task, lo, hi);

-- What engines hold of unfinished arrays: JSON of [lo, hi, engine_uuid, attempt, time].
CREATE TABLE IF NOT EXISTS held (
    task            INTEGER PRIMARY KEY,
    ranges          TEXT NOT NULL
);

-- Results of tasks that had been given up (their engine was thought dead): kept, not delivered.
CREATE TABLE IF NOT EXISTS late (
    id              INTEGER PRIMARY KEY,
    task            INTEGER NOT NULL,
    lo              INTEGER NOT NULL,
    hi              INTEGER NOT NULL,
    status          TEXT NOT NULL,
    engine_uuid     TEXT,
    received        INTEGER,
    result_metadata BLOB,
    result_content  BLOB
);
CREATE INDEX IF NOT EXISTS late_task ON late (task);

-- The files of large buffers.
CREATE TABLE IF NOT EXISTS file (
    number          INTEGER PRIMARY KEY,
    task            INTEGER NOT NULL,
    bytes           INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS file_task ON file (task);

-- For reading by people.
CREATE VIEW IF NOT EXISTS tasks AS
SELECT key, msg_id, queue, count, msg_type, name, label, client_uuid, status, attempt, engine_uuid, code,
       datetime(submitted / 1000000, 'unixepoch', 'localtime') AS submitted,
       datetime(dispatched / 1000000, 'unixepoch', 'localtime') AS dispatched,
       datetime(started / 1000000, 'unixepoch', 'localtime') AS started,
       datetime(completed / 1000000, 'unixepoch', 'localtime') AS completed,
       (completed - started) / 1e6 AS seconds, stdout, stderr, error
FROM task;
