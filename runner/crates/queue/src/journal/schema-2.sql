-- The journal, user_version 2. What comes after schema-1.sql.

-- Nobody wanted the event when it was taken: it has no task, and is matched again when the configuration changes.
ALTER TABLE events ADD COLUMN unwanted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX events_unwanted ON events (id) WHERE unwanted = 1;
-- Dead letters keep their roots: `rooted` is more than 0 while there are any, whether the event has ended or not.
CREATE INDEX events_rooted ON events (id) WHERE rooted > 0;

-- What else the worker has to remember: `matched`, the configuration that the unwanted events were last matched against.
CREATE TABLE notes (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- SQLite cannot change a CHECK, so the table is made anew.
CREATE TABLE tasks_2 (
    event         TEXT    NOT NULL REFERENCES events (id) ON DELETE CASCADE,
    plugin        TEXT    NOT NULL,           -- its name in the configuration
    state         TEXT    NOT NULL CHECK (state IN (
        'pending',                            -- runs when not_before_ms has come
        'blocked',                            -- runs after the tasks that waits_for names
        'running',
        'done',
        'dead',                               -- failed for good: a dead letter
        'lost',                               -- cannot be done any more: its outputs or its event are gone
        'refused')),                          -- somebody has to mend something; tried again when that may have happened
    attempts      INTEGER NOT NULL DEFAULT 0, -- begun, without those that are not counted
    age_ms        INTEGER NOT NULL DEFAULT 0, -- what counts towards give-up-after, up to the end of the last attempt
    last_ms       INTEGER,                    -- end of the last attempt; null before the first, and while the task is refused
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    class         TEXT,                       -- of the last attempt; see attempts.class
    message       TEXT,                       -- of the last attempt
    updated_ms    INTEGER NOT NULL,
    PRIMARY KEY (event, plugin)
) WITHOUT ROWID;
INSERT INTO tasks_2 (event, plugin, state, attempts, last_ms, not_before_ms, class, message, updated_ms)
    SELECT event, plugin, state, attempts, CASE WHEN state = 'pending' AND first_ms IS NOT NULL THEN updated_ms END,
           not_before_ms, class, message, updated_ms
    FROM tasks;
DROP TABLE tasks;
ALTER TABLE tasks_2 RENAME TO tasks;
CREATE INDEX tasks_plugin ON tasks (state, plugin, not_before_ms);
CREATE INDEX tasks_order ON tasks (plugin, event) WHERE state = 'pending';
CREATE INDEX tasks_time ON tasks (state, not_before_ms);
