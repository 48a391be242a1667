-- Builds that were left to this machine, written by the sessions of builder selection, and what lies on machines. Times are milliseconds since
-- 1970.

create table local_builds (
    drv_path text primary key,
    pname text not null,
    system text not null,
    command text not null, -- which Nix process asked
    lock text not null, -- the file that Nix holds locked while it builds; empty: not known
    declined_ms integer not null, -- Nix was told to build it here
    willing integer not null, -- had it a slot free, so that it began at once?
    ended_ms integer, -- none: not known to have ended
    seconds real
) without rowid;
create index local_builds_of_package on local_builds (pname, ended_ms);
create index local_builds_open on local_builds (declined_ms) where ended_ms is null;

create table present (
    path text not null, -- store path
    machine text not null, -- store URI
    seen_ms integer not null, -- when a build brought it there, or left it there
    primary key (path, machine)
) without rowid;
