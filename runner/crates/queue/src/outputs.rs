//! Looks up an event's outputs in Nix's database, which hooks do not read: the valid outputs, and
//! all outputs if neither Nix nor the derivation named them.

use hookrun_nix::database::{Database, DatabaseError};
use hookrun_nix::derivation::{Derivation, MAX_SIZE};
use hookrun_nix::event::{Event, HookEvent, Output};

/// Returns the event with the outputs that are valid now. If none is valid, the event is not
/// changed, because a remote build is reported before its outputs are copied.
pub fn settled(event: Event) -> Event {
    let HookEvent::PostBuild(build) = &event.hook else { return event };
    if event.seen_valid {
        return event;
    }
    // If the database cannot be read, the event is not changed.
    let Ok(valid) = valid(&event, build.outputs.clone()) else { return event };
    if valid.is_empty() {
        return event;
    }
    let mut event = event;
    if let HookEvent::PostBuild(build) = &mut event.hook {
        build.outputs = valid;
    }
    Event { seen_valid: true, ..event }
}

/// Returns the number of the event's outputs that are not valid any longer, and the first of them;
/// none if all are valid, or if the database cannot be read.
pub fn missing(event: &Event) -> Option<(usize, String)> {
    let HookEvent::PostBuild(build) = &event.hook else { return None };
    let valid = valid(event, build.outputs.clone()).ok()?;
    if valid.is_empty() && build.outputs.is_empty() {
        return Some((0, build.drv_path.clone()));
    }
    let mut gone = build.outputs.iter().filter(|output| !valid.contains(output));
    let first = gone.next()?.path.clone();
    Some((1 + gone.count(), first))
}

/// Returns the valid ones of `outputs`; if `outputs` is empty, those that the database knows.
fn valid(event: &Event, outputs: Vec<Output>) -> Result<Vec<Output>, DatabaseError> {
    let database = Database::open(&event.nix)?;
    let outputs = if outputs.is_empty() { known(&database, event)? } else { outputs };
    let paths: Vec<String> = outputs.iter().map(|output| output.path.clone()).collect();
    let infos = database.path_infos(&paths)?;
    let valid = outputs.into_iter().zip(infos).filter(|(_, info)| info.is_some());
    Ok(valid.map(|(output, _)| output).collect())
}

fn known(database: &Database, event: &Event) -> Result<Vec<Output>, DatabaseError> {
    let Ok(derivation) = Derivation::read_in(&event.nix, event.drv_path(), MAX_SIZE) else {
        return Ok(Vec::new());
    };
    let known = database.outputs(&derivation)?;
    Ok(known.into_iter().map(|(name, path)| Output { name, path }).collect())
}
