-- What is known about machines, written by the sessions of builder selection. Times are milliseconds since 1970.

create table health (
    machine text primary key, -- store URI
    failures integer not null, -- in a row
    last_error text,
    failed_ms integer, -- the last one
    retry_ms integer, -- not before
    succeeded_ms integer, -- the last answer
    connect_ms integer, -- how long that took
    bytes_per_second real -- of copies to it, lately
) without rowid;

create table builds (
    id integer primary key,
    drv_path text not null,
    name text not null,
    pname text not null,
    system text not null,
    command text not null, -- which Nix process asked
    machine text not null, -- the last one
    speed_factor real not null,
    accepted_ms integer not null, -- Nix was told that the build is taken
    waited_ms integer, -- then, until a slot was free
    started_ms integer, -- the machine has the inputs
    ended_ms integer, -- none: runs, or its session was killed
    seconds real, -- of building, copies not counted
    outcome text, -- built, failed, lost, abandoned
    detail text,
    input_bytes integer,
    moves text not null default '[]' -- [{"machine", "why"}]: machines that it was taken away from
);
create index builds_of_package on builds (pname, ended_ms);
create index builds_of_derivation on builds (drv_path);

create table decisions (
    id integer primary key,
    drv_path text not null,
    name text not null,
    at_ms integer not null,
    decision text not null -- JSON
);
create index decisions_of_derivation on decisions (drv_path);

create table postponed (
    drv_path text primary key,
    first_ms integer not null,
    last_ms integer not null
) without rowid;
