-- What a build required, so that a trace can be played with what it takes.

alter table builds add column features text; -- ["kvm"]: the required features; none: an earlier release did not write them
