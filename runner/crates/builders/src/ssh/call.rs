//! Parses the arguments with which Nix calls `ssh`: options, host and command. Pure.
//!
//! Nix 2.3 to 2.35 call `ssh HOST -x [-a] WORDS.. [-i FILE] [-oUserKnownHostsFile=FILE] [-C]
//! [-pPORT] [-oPermitLocalCommand=yes -oLocalCommand=echo started] [-S SOCKET] [-v] [--] COMMAND..`
//! (`libstore/ssh.cc`), where WORDS are the user's, and `ssh -O check HOST ..`. Only the first is a
//! [`SshCall`] that may share a connection; everything else is left to the real ssh.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// The options of ssh that take a value (`ssh.c` of 9.2 to 10.2).
const WITH_VALUE: &[u8] = b"bceilmopBDEFIJLOPQRSwW";
/// The options without a value that do not affect sharing.
const PLAIN: &[u8] = b"1246akqxCKTvy";
/// The options with a value that exclude sharing: a log file, forwardings, a control command or
/// socket, queries.
const ALONE: &[u8] = b"EDLROQSwW";

/// A command to run on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SshCall {
    /// The options, each with its value in one word, without `-v`.
    pub options: Vec<OsString>,
    /// The destination: `user@host` or `host`.
    pub host: OsString,
    /// The command, as ssh sends it.
    pub command: Vec<u8>,
}

impl SshCall {
    /// Parses the arguments of ssh. Returns `None` for a call that cannot share a connection.
    pub(super) fn parse(arguments: &[OsString]) -> Option<Self> {
        let mut options = Vec::new();
        let rest = take_options(arguments, &mut options)?;
        let (host, rest) = rest.split_first()?;
        // As in ssh itself, options may also follow the host.
        let command = take_options(rest, &mut options)?;
        if host.is_empty() || command.is_empty() {
            return None;
        }
        Some(Self {
            options,
            host: host.clone(),
            command: command.join(OsStr::new(" ")).into_vec(),
        })
    }

    /// Returns the arguments of an ssh with these options. If an option is repeated, ssh uses its
    /// first value.
    pub(super) fn arguments<'a>(
        &'a self,
        first: &'a [OsString],
    ) -> impl Iterator<Item = &'a OsStr> {
        let options = first.iter().chain(&self.options).map(OsString::as_os_str);
        options.chain([OsStr::new("--"), self.host.as_os_str()])
    }
}

/// Takes options from the beginning, as getopt(3) does. Returns the rest.
fn take_options<'a>(
    mut words: &'a [OsString],
    options: &mut Vec<OsString>,
) -> Option<&'a [OsString]> {
    while let Some((word, rest)) = words.split_first() {
        let mut letters = match word.as_bytes() {
            b"--" => return Some(rest),
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => break,
        };
        words = rest;
        while let Some((letter, after)) = letters.split_first() {
            letters = after;
            if WITH_VALUE.contains(letter) {
                let value = if after.is_empty() {
                    let (value, rest) = words.split_first()?;
                    words = rest;
                    value.as_bytes()
                } else {
                    after
                };
                if ALONE.contains(letter) {
                    return None;
                }
                options.push(OsString::from_vec([b"-".as_slice(), &[*letter], value].concat()));
                break;
            }
            if !PLAIN.contains(letter) {
                return None;
            }
            if *letter != b'v' {
                options.push(OsString::from_vec(vec![b'-', *letter]));
            }
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call(words: &str) -> Option<SshCall> {
        SshCall::parse(&words.split(',').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn calls_of_nix_are_parsed() {
        let old = "root@m,-x,-a,-p,22,-oConnectTimeout=10,-i,/key,-C,-v,nix-store --serve --write";
        let call_2_8 = call(old).unwrap();
        assert_eq!(call_2_8.options, ["-x", "-a", "-p22", "-oConnectTimeout=10", "-i/key", "-C"]);
        assert_eq!(
            (call_2_8.host.as_os_str(), &*call_2_8.command),
            (OsStr::new("root@m"), &b"nix-store --serve --write"[..])
        );
        let new = "m,-x,-oPermitLocalCommand=yes,-oLocalCommand=echo started,--,nix-store,--serve,--write";
        let call_2_34 = call(new).unwrap();
        assert_eq!(
            call_2_34.options,
            ["-x", "-oPermitLocalCommand=yes", "-oLocalCommand=echo started"]
        );
        assert_eq!(call_2_34.command, b"nix-store --serve --write");
        let first = ["-f".into()];
        let words: Vec<_> = call_2_34.arguments(&first).collect();
        assert_eq!(
            words,
            ["-f", "-x", "-oPermitLocalCommand=yes", "-oLocalCommand=echo started", "--", "m"]
        );
        assert_eq!(call("-xap22,m,true").unwrap().options, ["-x", "-a", "-p22"]);
    }

    #[test]
    fn other_calls_are_left_to_the_real_ssh() {
        for words in [
            "-O,check,m",
            "m",
            "-V",
            "m,-S,/socket,-x,true",
            "-M,-N,m",
            "m,-W,host:22",
            "-t,m,true",
            "m,-p",
            "--",
            "",
            "-L1:m:1,m,true",
            "-G,m",
            "m,-n,true",
            "m,-A,true",
            "m,-X,true",
        ] {
            assert_eq!(call(words), None, "{words}");
        }
    }

    proptest! {
        #[test]
        fn any_arguments_are_parsed_or_left_to_ssh(words in proptest::collection::vec("-{0,2}[a-zA-Z1-9@=. ]{0,6}", 0..8)) {
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            if let Some(call) = SshCall::parse(&words) {
                // The parsed call is parsed to the same result again.
                let again: Vec<OsString> =
                    call.arguments(&[]).map(OsStr::to_owned).chain(["--".into(), OsString::from_vec(call.command.clone())]).collect();
                let again = SshCall::parse(&again);
                prop_assert_eq!(again, Some(call));
            }
        }
    }
}
