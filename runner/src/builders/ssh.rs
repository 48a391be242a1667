//! What Nix's own hook's ssh is told: to give up on a machine that does not answer, and to notice one that is gone in the middle of a
//! build, which without this may take hours.

use std::ffi::OsString;

use crate::config;
use crate::dirs::Dirs;

/// Nix splits it at blanks and gives the words to every ssh that it starts (`libstore/ssh.cc`, 2.0 to 2.35).
const VARIABLE: &str = "NIX_SSHOPTS";
/// Seconds between two signs of life; ssh gives up after three that are not answered (`ServerAliveCountMax`).
const ALIVE_EVERY: u32 = 15;

/// Variables for Nix's own hook.
pub fn variables(options: &config::Builders, _dirs: &Dirs) -> Vec<(OsString, OsString)> {
    vec![(VARIABLE.into(), with_options(std::env::var_os(VARIABLE).unwrap_or_default(), options))]
}

/// The user's words come first: for ssh the first value of an option counts (`ssh_config(5)`).
fn with_options(mut words: OsString, options: &config::Builders) -> OsString {
    let seconds = options.connect_timeout.as_secs().max(1);
    words.push(format!(" -oConnectTimeout={seconds} -oServerAliveInterval={ALIVE_EVERY}"));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_words_come_first() {
        let words = with_options("-p 22".into(), &config::Builders::default());
        assert_eq!(words, "-p 22 -oConnectTimeout=10 -oServerAliveInterval=15");
    }
}
