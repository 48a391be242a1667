-- The history of machines and builds, written by the sessions of builder selection. Times are milliseconds since 1970.

create table health (
    machine text primary key, -- store URI
    failures integer not null, -- in a row
    last_error text,
    failed_ms integer, -- of the last failure
    retry_ms integer, -- the machine is not used before
    succeeded_ms integer, -- when it last answered
    connect_ms integer, -- duration of the last connection attempt
    bytes_per_second real -- of recent copies to it
) without rowid;

create table builds (
    id integer primary key,
    drv_path text not null,
    name text not null,
    pname text not null,
    system text not null,
    command text not null, -- the Nix process that asked
    machine text not null, -- the last machine used
    speed_factor real not null,
    accepted_ms integer not null, -- when Nix was told that the build is accepted
    waited_ms integer, -- from then until a slot was free
    started_ms integer, -- when the inputs had been copied
    ended_ms integer, -- null while it runs, or if its session was killed
    seconds real, -- duration of the build without copies
    outcome text, -- built, failed, lost, abandoned
    detail text,
    input_bytes integer,
    moves text not null default '[]', -- [{"machine", "why"}]: machines that it was moved away from
    features text -- ["kvm"]: the required features
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

-- Builds on this machine.
create table local_builds (
    drv_path text primary key,
    pname text not null,
    system text not null,
    command text not null, -- the Nix process that asked
    lock text not null, -- the file that Nix holds locked while it builds; empty if unknown
    declined_ms integer not null, -- when Nix was told to build it here
    willing integer not null, -- whether a slot was free, so that the build began at once
    ended_ms integer, -- null if it is not known to have ended
    seconds real
) without rowid;
create index local_builds_of_package on local_builds (pname, ended_ms);
create index local_builds_open on local_builds (declined_ms) where ended_ms is null;

-- Store paths that were seen on machines.
create table present (
    path text not null, -- store path
    machine text not null, -- store URI
    seen_ms integer not null, -- when a build copied it there or produced it there
    primary key (path, machine)
) without rowid;
