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
    nar_size    INTEGER,                      -- bytes of those outputs; null if Nix's database did not tell
    uid         INTEGER NOT NULL,             -- who handed it over: the owner of the spool file
    ended_ms    INTEGER,                      -- when its last task ended; null while one has not
    body        TEXT    NOT NULL              -- the event as JSON, as in the spool
) WITHOUT ROWID;
CREATE INDEX events_unended ON events (same) WHERE ended_ms IS NULL;
CREATE INDEX events_time ON events (time_ms);
CREATE INDEX events_uid ON events (uid);

-- One plugin's work on one event.
CREATE TABLE tasks (
    event         TEXT    NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin        TEXT    NOT NULL,           -- its name in the configuration
    state         TEXT    NOT NULL CHECK (state IN (
        'pending',                            -- runs when not_before_ms has come
        'blocked',                            -- runs after the tasks that waits_for names
        'running',
        'done',
        'dead',                               -- failed for good: a dead letter
        'refused')),                          -- could not begin; tried again by the next worker, after the configuration is mended
    attempts      INTEGER NOT NULL DEFAULT 0, -- begun, without those that failed while the plugin's breaker was open
    first_ms      INTEGER,                    -- when the first attempt began
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    class         TEXT,                       -- of the last attempt; see attempts.class
    message       TEXT,                       -- of the last attempt
    updated_ms    INTEGER NOT NULL,
    PRIMARY KEY (event, plugin)
) WITHOUT ROWID;
CREATE INDEX tasks_plugin ON tasks (state, plugin, not_before_ms);
CREATE INDEX tasks_order ON tasks (plugin, event) WHERE state = 'pending';
CREATE INDEX tasks_time ON tasks (state, not_before_ms);

-- Tasks of plugins that want dependencies first: `event` runs after `on_event`, of the same plugin, has ended.
CREATE TABLE waits_for (
    on_event TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin   TEXT NOT NULL,
    event    TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    PRIMARY KEY (on_event, plugin, event)
) WITHOUT ROWID;
CREATE INDEX waits_for_event ON waits_for (event, plugin);

-- Outputs of events that a later one may have to wait for; gone when the event has ended.
CREATE TABLE outputs (
    path  TEXT NOT NULL,
    event TEXT NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    PRIMARY KEY (path, event)
) WITHOUT ROWID;
CREATE INDEX outputs_event ON outputs (event);

-- Plugins whose service seems to be down: their tasks wait, and one at a time is tried. No row: all is well.
CREATE TABLE breakers (
    plugin    TEXT    NOT NULL PRIMARY KEY,
    since_ms  INTEGER NOT NULL,               -- when it opened
    until_ms  INTEGER NOT NULL,               -- when the next task is tried
    trips     INTEGER NOT NULL,               -- tries that failed since it opened
    message   TEXT    NOT NULL                -- of the last failure
) WITHOUT ROWID;

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
