//! Events for the tests of this crate.

use hookrun_nix::event::{Diff, Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun_nix::evidence::Evidence;

const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

fn event(hook: HookEvent) -> Event {
    let nix = NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix");
    Event { nix, ..Event::now(hook) }
}

fn drv(name: &str) -> (String, Output) {
    let path = format!("/nix/store/{HASH}-{name}");
    (format!("{path}.drv"), Output { name: "out".into(), path })
}

/// A derivation called `name` was built.
pub(crate) fn post_build(name: &str) -> Event {
    let (drv_path, output) = drv(name);
    event(HookEvent::PostBuild(PostBuild { drv_path, outputs: vec![output] }))
}

/// Two builds of `name` differ.
pub(crate) fn diff(name: &str) -> Event {
    let (drv_path, output) = drv(name);
    let (previous, current) = (output.path.clone(), format!("{}.check", output.path));
    event(HookEvent::Diff(Diff {
        drv_path,
        output,
        previous,
        current,
        evidence: Evidence::default(),
    }))
}
