-- The journal, user_version 1. Times are milliseconds since 1970. Read it with `sqlite3 -readonly journal.sqlite`.

-- What hooks handed over. A row comes in the same transaction as its tasks, before the spool file is removed.
CREATE TABLE events (
    id          TEXT    NOT NULL PRIMARY KEY, -- UUID version 7: the spool file's name
    time_ms     INTEGER NOT NULL,             -- when Nix called the hook
    taken_ms    INTEGER NOT NULL,             -- when the worker took it
    kind        TEXT    NOT NULL,             -- post-build or diff
    name        TEXT    NOT NULL,             -- the derivation's name
    drv_path    TEXT    NOT NULL,             -- the derivation's store path
    same        TEXT    NOT NULL,             -- equal for events that say the same
    merged_into TEXT,                         -- the earlier, unfinished event that says the same; then it has no tasks
    rooted      INTEGER NOT NULL,             -- outputs with a garbage-collector root
    ended_ms    INTEGER,                      -- when its last task ended; null while one has not
    body        TEXT    NOT NULL              -- the event as JSON, as in the spool
) WITHOUT ROWID;
CREATE INDEX events_unended ON events (same) WHERE ended_ms IS NULL;
CREATE INDEX events_time ON events (time_ms);

-- One plugin's work on one event.
CREATE TABLE tasks (
    event         TEXT    NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin        TEXT    NOT NULL,           -- its name in the configuration
    state         TEXT    NOT NULL CHECK (state IN (
        'pending',                            -- runs when not_before_ms has come
        'running',
        'done',
        'dead',                               -- failed for good: a dead letter
        'refused')),                          -- could not begin; tried again by the next worker, after the configuration is mended
    attempts      INTEGER NOT NULL DEFAULT 0, -- begun
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    class         TEXT,                       -- of the last attempt; see attempts.class
    message       TEXT,                       -- of the last attempt
    updated_ms    INTEGER NOT NULL,
    PRIMARY KEY (event, plugin)
) WITHOUT ROWID;
CREATE INDEX tasks_plugin ON tasks (state, plugin, not_before_ms);
CREATE INDEX tasks_time ON tasks (state, not_before_ms);

-- One run of a task.
CREATE TABLE attempts (
    id       INTEGER NOT NULL PRIMARY KEY,
    event    TEXT    NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin   TEXT    NOT NULL,
    number   INTEGER NOT NULL,                -- 1 for the first
    start_ms INTEGER NOT NULL,
    end_ms   INTEGER NOT NULL,
    class    TEXT    NOT NULL,                -- done, permanent, transient, trapped, limit, refused, or interrupted: the worker died
    message  TEXT    NOT NULL,
    usage    TEXT    NOT NULL,                -- JSON: what it used
    log      TEXT    NOT NULL                 -- JSON: what it logged
);
CREATE INDEX attempts_event ON attempts (event, plugin);
