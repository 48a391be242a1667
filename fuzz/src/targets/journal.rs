//! Rows of the journal as damage or another release may leave them.

use std::path::Path;

use hookrun_nix::dirs::Dirs;
use hookrun_queue::journal::{Journal, LogFilter};
use rusqlite::types::Value;

/// A column of one row is replaced; the first byte of the input says which.
const COLUMNS: [(&str, &str); 12] = [
    ("events", "body"),
    ("events", "time_ms"),
    ("events", "name"),
    ("events", "drv_path"),
    ("events", "nar_size"),
    ("events", "uid"),
    ("tasks", "attempts"),
    ("tasks", "not_before_ms"),
    ("tasks", "class"),
    ("tasks", "message"),
    ("attempts", "usage"),
    ("attempts", "log"),
];

/// A row of each table, twice.
const ROWS: &str = "
INSERT INTO events (id, time_ms, taken_ms, kind, name, drv_path, same, rooted, uid, body)
    VALUES ('01941fd6-4c00-7000-8000-00000000000@', 1, 1, 'post-build', 'a', '/nix/store/a.drv',
            '@', 0, 0, '{}');
INSERT INTO tasks (event, plugin, state, updated_ms)
    VALUES ('01941fd6-4c00-7000-8000-00000000000@', 'p', 'pending', 1);
INSERT INTO attempts (event, plugin, number, start_ms, end_ms, class, message, usage, log)
    VALUES ('01941fd6-4c00-7000-8000-00000000000@', 'p', 1, 1, 2, 'done', 'm', '{}', '[]');
";

pub(crate) fn run(data: &[u8]) {
    let Some((which, value)) = data.split_first() else { return };
    let directory = tempfile::Builder::new().tempdir_in(place()).unwrap();
    let state = directory.path().to_owned();
    let dirs = Dirs { config: state.join("hookrun.toml"), state };
    drop(Journal::open(&dirs).unwrap());
    let connection = rusqlite::Connection::open(dirs.journal().join("journal.sqlite")).unwrap();
    for number in ["1", "2"] {
        connection.execute_batch(&ROWS.replace('@', number)).unwrap();
    }
    let (table, column) = COLUMNS.get(usize::from(which >> 1) % COLUMNS.len()).unwrap();
    let value = if which & 1 == 0 {
        Value::Text(String::from_utf8_lossy(value).into_owned())
    } else {
        Value::Blob(value.to_vec())
    };
    let key = if *table == "events" { "id" } else { "event" };
    let sql = format!("UPDATE {table} SET {column} = ?1 WHERE {key} LIKE '%1'");
    connection.execute(&sql, [value]).unwrap();
    drop(connection);
    read(&dirs);
}

/// All that people and the worker ask of a journal: an answer or an error, and it opens again.
fn read(dirs: &Dirs) {
    let journal = Journal::open_read_only(dirs).unwrap().unwrap();
    let _ = (journal.counts(1000).is_ok(), journal.open_tasks(1000).is_ok());
    let _ = journal.log(&LogFilter::default()).is_ok();
    let _ = journal.events_without_tasks(0).is_ok();
    let _ = journal.salvage().len();
    drop(journal);
    Journal::open(dirs).expect("the journal opens despite a damaged row");
}

/// Memory, where there is a file system in it.
fn place() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}
