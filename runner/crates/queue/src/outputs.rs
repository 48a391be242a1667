//! Looks up an event's outputs in Nix's database, which a hook cannot or does not do: which are
//! valid, and which outputs there are if neither Nix nor the derivation named them.

use hookrun_nix::database::{Database, DatabaseError};
use hookrun_nix::derivation::{Derivation, MAX_SIZE};
use hookrun_nix::event::{Event, HookEvent, Output};

/// The event as the worker takes it: with the outputs that are valid now. One of which none is
/// valid stays as the hook handed it over: a remote build is reported before its outputs are
/// copied.
pub fn settled(event: Event) -> Event {
    let HookEvent::PostBuild(build) = &event.hook else { return event };
    if event.seen_valid {
        return event;
    }
    // Without an answer of the database nothing is known.
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

/// How many of the event's outputs are not valid any more, and the first of them; none if all of
/// them are, or if the database does not tell.
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

/// Those of `outputs` that are valid, or those that the database knows where there are none.
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
