//! Invalid uses of handles: too many, dropped twice, used after the drop, forged.

use hookrun_sdk::nix_store::{self, Nar};
use hookrun_sdk::{Failure, Outcome};

use crate::Here;

/// A number beyond every table of handles.
const FORGED: u32 = 4711;

pub(crate) fn many(here: &Here) -> Result<Outcome, Failure> {
    let mut held = Vec::new();
    for _ in 0..10_000 {
        held.push(
            nix_store::open_nar(&here.out)
                .map_err(|error| error.context(format!("with {} open", held.len())))?,
        );
    }
    crate::escaped(format!("{} handles", held.len()))
}

pub(crate) fn trap_holding(here: &Here) -> Result<Outcome, Failure> {
    let _held = nix_store::open_nar(&here.out)?;
    crate::bombs::trap()
}

/// Makes a second owner of a handle.
fn again(nar: &Nar) -> Nar {
    // SAFETY: there is none, and that is the attack: the engine has to notice. In the guest it is
    // only a number.
    unsafe { Nar::from_handle(nar.handle()) }
}

pub(crate) fn drop_twice(here: &Here) -> Result<Outcome, Failure> {
    let nar = nix_store::open_nar(&here.out)?;
    drop(again(&nar));
    drop(nar);
    crate::escaped("gave a handle back twice")
}

pub(crate) fn use_dropped(here: &Here) -> Result<Outcome, Failure> {
    let nar = nix_store::open_nar(&here.out)?;
    let second = again(&nar);
    drop(nar);
    crate::escaped(format!("a handle that was given back stands for {}", second.path()))
}

pub(crate) fn forged() -> Result<Outcome, Failure> {
    // SAFETY: as above.
    let nar = unsafe { Nar::from_handle(FORGED) };
    crate::escaped(format!("a handle it never had stands for {}", nar.path()))
}
