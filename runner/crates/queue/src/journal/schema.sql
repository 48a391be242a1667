-- The journal, user_version 1. Times are milliseconds since 1970. To read it: `sqlite3 -readonly journal.sqlite`.

-- Events from hooks. A row is written in one transaction with its tasks, before the spool file is removed.
CREATE TABLE events (
    id          TEXT    NOT NULL PRIMARY KEY, -- UUID version 7: the spool file's name
    time_ms     INTEGER NOT NULL,             -- when Nix called the hook
    taken_ms    INTEGER NOT NULL,             -- when the worker read the spool file
    kind        TEXT    NOT NULL,             -- post-build or diff
    name        TEXT    NOT NULL,             -- the derivation's name
    drv_path    TEXT    NOT NULL,             -- the derivation's store path
    same        TEXT    NOT NULL,             -- equal for events with the same content
    merged_into TEXT,                         -- the earlier, unfinished event with the same content; then this one has no tasks
    rooted      INTEGER NOT NULL,             -- outputs with a garbage-collector root
    nar_size    INTEGER,                      -- bytes of those outputs; null if Nix's database does not contain them
    uid         INTEGER NOT NULL,             -- the owner of the spool file
    ended_ms    INTEGER,                      -- when its last task ended; null while a task is open
    body        TEXT    NOT NULL,             -- the event as JSON, as in the spool
    unwanted    INTEGER NOT NULL DEFAULT 0    -- 1: no plugin wanted it; matched again when the configuration changes
) WITHOUT ROWID;
CREATE INDEX events_unended ON events (same) WHERE ended_ms IS NULL;
CREATE INDEX events_time ON events (time_ms);
CREATE INDEX events_uid ON events (uid);
CREATE INDEX events_unwanted ON events (id) WHERE unwanted = 1;
-- Dead letters keep their roots: `rooted` is the number of roots, even after the event has ended.
CREATE INDEX events_rooted ON events (id) WHERE rooted > 0;

-- One task for each event and plugin.
CREATE TABLE tasks (
    event         TEXT    NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin        TEXT    NOT NULL,           -- its name in the configuration
    state         TEXT    NOT NULL CHECK (state IN (
        'pending',                            -- runs at not_before_ms or later
        'blocked',                            -- runs after the tasks in waits_for
        'running',
        'done',
        'dead',                               -- failed for the last time: a dead letter
        'lost',                               -- cannot be done: its outputs or its event are gone
        'refused')),                          -- the operator has to fix something; tried again when that may have happened
    attempts      INTEGER NOT NULL DEFAULT 0, -- begun attempts, without those that are not counted
    age_ms        INTEGER NOT NULL DEFAULT 0, -- time that counts towards give-up-after, up to the end of the last attempt
    last_ms       INTEGER,                    -- end of the last attempt; null before the first, and while the task is refused
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    class         TEXT,                       -- of the last attempt; see attempts.class
    message       TEXT,                       -- of the last attempt
    updated_ms    INTEGER NOT NULL,
    PRIMARY KEY (event, plugin)
) WITHOUT ROWID;
CREATE INDEX tasks_plugin ON tasks (state, plugin, not_before_ms);
CREATE INDEX tasks_order ON tasks (plugin, event) WHERE state = 'pending';
CREATE INDEX tasks_time ON tasks (state, not_before_ms);

-- For plugins with `order = "dependencies-first"`: the task of `event` runs after that of `on_event` has ended.
CREATE TABLE waits_for (
    on_event TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin   TEXT NOT NULL,
    event    TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    PRIMARY KEY (on_event, plugin, event)
) WITHOUT ROWID;
CREATE INDEX waits_for_event ON waits_for (event, plugin);

-- Outputs of open events. Tasks of later events may wait for them.
CREATE TABLE outputs (
    path  TEXT NOT NULL,
    event TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    PRIMARY KEY (path, event)
) WITHOUT ROWID;
CREATE INDEX outputs_event ON outputs (event);

-- Plugins with an open circuit breaker: their tasks wait, and one at a time is tried. A closed
-- breaker has no row.
CREATE TABLE breakers (
    plugin    TEXT    NOT NULL PRIMARY KEY,
    since_ms  INTEGER NOT NULL,               -- when it opened
    until_ms  INTEGER NOT NULL,               -- when the next task may be tried
    trips     INTEGER NOT NULL,               -- failed tests since it opened
    message   TEXT    NOT NULL                -- of the last failure
) WITHOUT ROWID;

-- Attempts at tasks.
CREATE TABLE attempts (
    id       INTEGER NOT NULL PRIMARY KEY,
    event    TEXT    NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin   TEXT    NOT NULL,
    number   INTEGER NOT NULL,                -- 1 for the first
    start_ms INTEGER NOT NULL,
    end_ms   INTEGER NOT NULL,
    class    TEXT    NOT NULL,                -- done, permanent, transient, trapped, limit, lost, refused, or interrupted (the worker died)
    message  TEXT    NOT NULL,
    usage    TEXT    NOT NULL,                -- JSON: used time, memory and calls
    log      TEXT    NOT NULL                 -- JSON: log messages
);
CREATE INDEX attempts_event ON attempts (event, plugin);

-- Single values: `matched` is the configuration against which unwanted events were last matched.
CREATE TABLE notes (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
