//! The hooks that the user's configuration of Nix already sets. Nix has only one hook of each kind,
//! so the hooks of `hookrun ci` replace them for the command. Hooks that can be called as well are
//! called from there; the others are named in a message.

use std::path::Path;

use crate::doctor::ConfiguredHook;
use crate::doctor::gather::hook;
use hookrun_nix::dirs::{Dirs, SYSTEM_STATE};
use hookrun_nix::installed::Installed;

/// The hooks that the user's configuration sets.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct OwnHooks {
    /// The program of `post-build-hook`, to be called as well.
    pub(super) post_build: Option<String>,
    /// The program of `diff-hook`, to be called as well.
    pub(super) diff: Option<String>,
    /// One line about each hook that is replaced.
    pub(super) notes: Vec<String>,
}

impl OwnHooks {
    /// Asks the Nix in `PATH`, with the current `NIX_CONFIG`. If Nix does not answer, there are
    /// none.
    pub(super) fn find(dirs: &Dirs, diff: bool, build_hook: bool) -> Self {
        let Ok(nix) = Installed::find() else { return Self::default() };
        let named = |setting: &str| hook(&nix, setting);
        let runs_diff = diff && nix.setting("run-diff-hook") == "true";
        Self::of(
            &dirs.state,
            &named("post-build-hook"),
            &if runs_diff { named("diff-hook") } else { ConfiguredHook::Unset },
            &if build_hook { named("build-hook") } else { ConfiguredHook::Unset },
        )
    }

    fn of(
        state: &Path,
        post_build: &ConfiguredHook,
        diff: &ConfiguredHook,
        build_hook: &ConfiguredHook,
    ) -> Self {
        let mut own = Self::default();
        own.post_build = own.replaced("post-build-hook", post_build, state);
        own.diff = own.replaced("diff-hook", diff, state);
        if let ConfiguredHook::Other(text)
        | ConfiguredHook::Hookrun(text)
        | ConfiguredHook::Unusable(text, _) = build_hook
        {
            own.notes.push(format!(
                "build-hook = {text} is not called for this command, because --build-hook takes its place"
            ));
        }
        own
    }

    /// Returns the program to call as well, if there is one; adds a note about a hook that is
    /// replaced.
    fn replaced(&mut self, setting: &str, hook: &ConfiguredHook, state: &Path) -> Option<String> {
        match hook {
            ConfiguredHook::Unset => None,
            ConfiguredHook::Other(text) => {
                self.notes.push(format!("{setting} = {text} of your configuration is also called"));
                Some(text.clone())
            }
            // The hook uses the same queue, so there is nothing to report.
            ConfiguredHook::Hookrun(_) if state == Path::new(SYSTEM_STATE) => None,
            ConfiguredHook::Hookrun(text) => {
                self.notes.push(format!(
                    "{setting} = {text} is not called for this command: its builds go to the queue in {}",
                    state.display()
                ));
                None
            }
            ConfiguredHook::Unusable(text, why) => {
                self.notes.push(format!(
                    "{setting} = {text} of your configuration is not called for this command: {why}"
                ));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_of_the_user_are_called_as_well_or_named() {
        let other = |text: &str| ConfiguredHook::Other(text.to_owned());
        let hookrun = ConfiguredHook::Hookrun("/lib/hookrun-post-build".to_owned());
        let home = Path::new("/home/a/state");
        assert_eq!(
            OwnHooks::of(
                home,
                &ConfiguredHook::Unset,
                &ConfiguredHook::Unset,
                &ConfiguredHook::Unset
            ),
            OwnHooks::default()
        );
        assert_eq!(
            OwnHooks::of(
                Path::new(SYSTEM_STATE),
                &hookrun,
                &ConfiguredHook::Unset,
                &ConfiguredHook::Unset
            ),
            OwnHooks::default()
        );
        let own =
            OwnHooks::of(home, &other("/own post"), &other("/own-diff"), &other("/own-build"));
        assert_eq!(own.post_build.as_deref(), Some("/own post"));
        assert_eq!(own.diff.as_deref(), Some("/own-diff"));
        let missing =
            ConfiguredHook::Unusable("/gone".to_owned(), "there is no such file".to_owned());
        let notes =
            [own.notes, OwnHooks::of(home, &hookrun, &missing, &ConfiguredHook::Unset).notes]
                .concat();
        insta::assert_snapshot!(notes.join("\n"), @"
        post-build-hook = /own post of your configuration is also called
        diff-hook = /own-diff of your configuration is also called
        build-hook = /own-build is not called for this command, because --build-hook takes its place
        post-build-hook = /lib/hookrun-post-build is not called for this command: its builds go to the queue in /home/a/state
        diff-hook = /gone of your configuration is not called for this command: there is no such file
        ");
    }
}
