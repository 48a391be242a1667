use std::io;

use proptest::prelude::*;

use super::*;

const NIX_2_3: (Flavour, Version) = (Flavour::Nix, Version(2, 3, 16));
const NIX_2_4: (Flavour, Version) = (Flavour::Nix, Version(2, 4, 0));
const NIX_2_8: (Flavour, Version) = (Flavour::Nix, Version(2, 8, 0));
const NIX_2_29: (Flavour, Version) = (Flavour::Nix, Version(2, 29, 0));

fn parse_files(builders: &str, files: &[(&str, &str)]) -> Machines {
    parse_files_as(NIX_2_29, builders, files).0
}

fn parse_files_as(
    version: (Flavour, Version),
    builders: &str,
    files: &[(&str, &str)],
) -> (Machines, bool) {
    let mut read = |path: &Path| match files.iter().find(|(name, _)| Path::new(name) == path) {
        Some((_, "denied")) => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        Some((_, text)) => Ok(text.as_bytes().to_vec()),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    parse_with(builders.as_bytes(), "x86_64-linux", Reading::of(version), &mut read)
}

fn lines(found: &Machines) -> Vec<String> {
    found.machines.iter().map(ToString::to_string).collect()
}

#[test]
fn all_columns_are_parsed() {
    let found = parse_files(
        "ssh://m1 x86_64-linux,i686-linux /root/.ssh/id 8 2.5 kvm,big-parallel benchmark c3NoLWVkMjU1MTk=",
        &[],
    );
    assert_eq!(found.warnings, [""; 0]);
    let machine = &found.machines[0];
    assert_eq!(*machine.systems, ["x86_64-linux", "i686-linux"]);
    assert_eq!((machine.max_jobs, machine.speed_factor), (8, 2.5));
    assert_eq!(machine.ssh_key.as_deref(), Some("/root/.ssh/id"));
    assert_eq!(machine.host_key.as_deref(), Some("c3NoLWVkMjU1MTk="));
    assert_eq!(
        machine.line_for_stock_hook(),
        "ssh://m1 x86_64-linux,i686-linux /root/.ssh/id 8 - big-parallel,kvm benchmark c3NoLWVkMjU1MTk="
    );
}

#[test]
fn separators_comments_defaults_and_names() {
    let found = parse_files(
        "m1 - - 2 ; root@m2 # the old one ; m3\n\n  # nothing\n\t/srv/store x86_64-linux\nlocal?root=/x - - 0 0\n?root=/y\nssh-ng://h?a=b,c",
        &[],
    );
    assert_eq!(found.warnings, [""; 0]);
    insta::assert_snapshot!(lines(&found).join("\n"), @r"
    ssh://m1 x86_64-linux - 2 1 - - -
    ssh://root@m2 x86_64-linux - 1 1 - - -
    /srv/store x86_64-linux - 1 1 - - -
    local?root=/x x86_64-linux - 0 1 - - -
    ?root=/y x86_64-linux - 1 1 - - -
    ssh-ng://h?a=b,c x86_64-linux - 1 1 - - -
    ");
}

#[test]
fn included_files_are_read() {
    let files = [
        ("/etc/nix/machines", "m1\n@/etc/nix/more # and\n@/none\nm3 - - many\n"),
        ("/etc/nix/more", "m2;m2b - - 1 -2\n@/etc/nix/machines"),
        ("/secret", "denied"),
    ];
    let found =
        parse_files("@/etc/nix/machines ; m4 - - - - - - !\n@/secret\n- x86_64-linux", &files);
    insta::assert_snapshot!(lines(&found).join("\n"), @r"
    ssh://m1 x86_64-linux - 1 1 - - -
    ssh://m2 x86_64-linux - 1 1 - - -
    ");
    insta::assert_snapshot!(found.warnings.join("\n"), @r"
    /etc/nix/more:1: column 5 (speed factor): `-2` is not a valid speed factor; write a number greater than 0 such as `2`; the machine is ignored
    /etc/nix/more:2: `@/etc/nix/machines` includes itself or is nested more than 64 files deep; remove it
    /etc/nix/machines:4: column 4 (maximum number of jobs): `many` is not a valid number of jobs; write a whole number such as `4`; the machine is ignored
    setting `builders`:1: column 8 (public host key): it is not base64; write the output of `base64 -w0` on the machine's public host key; the machine is ignored
    setting `builders`:2: `@/secret` cannot be read (permission denied); make it readable or remove it
    setting `builders`:3: column 1 (store URI): a store URI is needed, such as `ssh://builder`; the machine is ignored
    ");
}

/// The same machines as in the previous version.
const SAME: Option<&[&str]> = Some(&["same"]);

/// Each row has a text, and the machines (URI, jobs, speed factor) that each Nix reads from it;
/// `None` if Nix fails the whole command.
#[test]
fn each_version_reads_as_its_source_says() {
    type Read = Option<&'static [&'static str]>;
    let rows: &[(&str, Read, Read, Read, Read)] = &[
        // Text, 2.3, 2.4, 2.5 to 2.28 and Lix, 2.29 and later.
        (
            "m1 # old ; m2",
            Some(&["ssh://m1 1 1", "ssh://m2 1 1"]),
            SAME,
            SAME,
            Some(&["ssh://m1 1 1"]),
        ),
        (
            "# m1 ; m2\nm3",
            Some(&["ssh://m2 1 1", "ssh://m3 1 1"]),
            SAME,
            SAME,
            Some(&["ssh://m3 1 1"]),
        ),
        ("m1;@/more", Some(&["ssh://m1 1 1", "ssh://m9 1 1"]), SAME, SAME, SAME),
        (
            "m1; @/more",
            Some(&["ssh://m1 1 1", "ssh://@/more 1 1"]),
            Some(&["ssh://m1 1 1", "@/more 1 1"]),
            SAME,
            Some(&["ssh://m1 1 1", "ssh://m9 1 1"]),
        ),
        ("@ /more ", Some(&["ssh://m9 1 1"]), SAME, SAME, SAME),
        ("m1 - - 4x", Some(&["ssh://m1 4 1"]), SAME, None, None),
        ("m1 - - 2 3.7z", Some(&["ssh://m1 2 3"]), SAME, None, None),
        ("m1 - - -1", Some(&["ssh://m1 4294967295 1"]), SAME, None, None),
        ("m1 - - x", None, None, None, None),
        ("m1 - - +4 +2", Some(&["ssh://m1 4 2"]), SAME, SAME, SAME),
        ("m1 - - 1 0", Some(&["ssh://m1 1 1"]), SAME, SAME, SAME),
        ("m1 - - 1 1 - - !", Some(&["ssh://m1 1 1"]), SAME, None, None),
        ("m1 - - 1 1 - - AAA='", Some(&["ssh://m1 1 1"]), SAME, SAME, SAME),
        ("m1 - - 1 1 - - A", Some(&["ssh://m1 1 1"]), SAME, SAME, SAME),
        ("localhost", Some(&["localhost 1 1"]), Some(&["ssh://localhost 1 1"]), SAME, SAME),
        ("daemon", Some(&["ssh://daemon 1 1"]), Some(&["daemon 1 1"]), SAME, SAME),
        ("m1/b", Some(&["ssh://m1/b 1 1"]), Some(&["m1/b 1 1"]), SAME, SAME),
        ("auto?root=/x", Some(&["auto?root=/x 1 1"]), SAME, SAME, SAME),
        ("m1 - - - - - - - ninth column", Some(&["ssh://m1 1 1"]), SAME, SAME, SAME),
        ("m1\u{b}- - 2", Some(&["ssh://m1\u{b}- 1 1"]), SAME, SAME, SAME),
    ];
    for (text, in_2_3, in_2_4, in_2_8, in_2_29) in rows {
        let mut before = *in_2_3;
        let lix = (Flavour::Lix, Version(2, 93, 0));
        let versions = [
            (NIX_2_3, in_2_3),
            (NIX_2_4, in_2_4),
            (NIX_2_8, in_2_8),
            (lix, &SAME),
            (NIX_2_29, in_2_29),
        ];
        for (version, expected) in versions {
            let expected = if *expected == SAME { before } else { *expected };
            before = expected;
            let (found, differs) = parse_files_as(version, text, &[("/more", "m9")]);
            let read: Vec<String> = found
                .machines
                .iter()
                .map(|machine| {
                    format!("{} {} {}", machine.uri, machine.max_jobs, machine.speed_factor)
                })
                .collect();
            assert_eq!(read, expected.unwrap_or_default(), "{text:?} as {version:?}");
            assert_eq!(expected.is_none(), read.is_empty(), "{text:?}");
            assert!(expected.is_some() || !found.warnings.is_empty(), "{text:?}");
            let versions_differ = [in_2_4, in_2_8, in_2_29].iter().any(|read| **read != SAME);
            assert_eq!(
                differs,
                versions_differ && in_2_3.is_some() || expected.is_none(),
                "{text:?} as {version:?}"
            );
        }
    }
}

#[test]
fn the_version_is_asked_for_only_if_it_matters() {
    let never = || -> Option<(Flavour, Version)> { panic!("asked for the version") };
    let plain = "ssh://m1 - /key 4 2.5 kvm - AAA=' # comment\n\n  m2;m3 # other\n/srv/b\n";
    assert_eq!(parse_as(plain.as_bytes(), "x", never).machines.len(), 4);
    let count = |version| parse_as(b"m1 # old ; m2", "x", || version).machines.len();
    assert_eq!([count(None), count(Some(NIX_2_8)), count(Some(NIX_2_29))], [1, 2, 1]);
}

#[test]
fn bytes_that_are_not_text_affect_only_their_machine() {
    let text = b"m1 # B\xfcro\nm2 - /k\xe9y\nm3 - - 2";
    let mut read = |_: &Path| -> io::Result<Vec<u8>> { Ok(text.to_vec()) };
    let (found, _) = parse_with(b"@/etc/nix/machines", "x86_64-linux", Reading::NEWEST, &mut read);
    assert_eq!(
        lines(&found),
        ["ssh://m1 x86_64-linux - 1 1 - - -", "ssh://m3 x86_64-linux - 2 1 - - -"]
    );
    insta::assert_snapshot!(found.warnings.join("\n"), @"/etc/nix/machines:2: column 3 (ssh key file): it is not UTF-8; write it in UTF-8; the machine is ignored");
}

#[test]
fn files_that_include_each_other_end() {
    let mut read = |path: &Path| -> io::Result<Vec<u8>> {
        let name = path.display();
        Ok(format!("m\n@{name}0\n@{name}1").into_bytes())
    };
    let (found, _) = parse_with(b"@f", "x86_64-linux", Reading::NEWEST, &mut read);
    assert_eq!(found.machines.len(), MAX_FILES);
}

#[test]
fn speed_factors_are_parsed_as_in_each_nix_version() {
    let read = |text: &str| entry::factor(text);
    assert_eq!([read("2"), read("2.5"), read("1e2"), read(".5")], [2.0, 2.5, 100.0, 0.5].map(Some));
    assert_eq!([read("0"), read("-0"), read("1e-60"), read("nan")], [1.0; 4].map(Some));
    assert_eq!([read("inf"), read("1e60")], [f64::from(f32::MAX); 2].map(Some));
    assert_eq!([read("-1"), read("x"), read("-inf"), read("")], [None; 4]);
}

#[test]
fn machines_fit_by_system_and_features() {
    let found = parse_files("m x86_64-linux,aarch64-linux - 1 1 kvm,big-parallel gpu", &[]);
    let fits = |system: &str, features: &[&str]| {
        found.machines[0]
            .fits(system, &features.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
    };
    assert!(fits("aarch64-linux", &["gpu", "kvm"]));
    assert!(fits("builtin", &["gpu"]), "builtin fits every system");
    assert!(!fits("x86_64-linux", &["kvm"]), "the mandatory feature is not required");
    assert!(!fits("x86_64-linux", &["gpu", "cuda"]), "a feature is missing");
    assert!(!fits("riscv64-linux", &["gpu"]));
}

fn word() -> impl Strategy<Value = String> {
    "[a-z0-9_][a-z0-9_.-]{0,9}"
}

prop_compose! {
    fn any_machine()(
        uri in prop_oneof![word().prop_map(|w| format!("ssh://{w}")), word().prop_map(|w| format!("/srv/{w}?a=b&c={w}"))],
        systems in prop::collection::vec(word(), 1..3),
        ssh_key in prop::option::of(word()),
        max_jobs: u32,
        speed_factor in prop_oneof![(1u32..99).prop_map(f64::from), 0.001f64..1e6],
        supported_features in prop::collection::btree_set(word(), 0..3),
        mandatory_features in prop::collection::btree_set(word(), 0..3),
        host_key in prop::option::of(prop::collection::vec(any::<u8>(), 1..30)),
    ) -> MachineLine {
        use base64::Engine as _;
        let host_key = host_key.map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes));
        MachineLine {
            uri,
            systems: systems.into_iter().collect(),
            ssh_key,
            max_jobs,
            speed_factor,
            supported_features: supported_features.into_iter().collect(),
            mandatory_features: mandatory_features.into_iter().collect(),
            host_key,
        }
    }
}

proptest! {
    #[test]
    fn a_written_line_is_read_back(machines in prop::collection::vec(any_machine(), 0..4), separator in prop_oneof![Just("\n"), Just(";"), Just(" ; # x\n")]) {
        let text = machines.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator);
        let found = parse_files(&text, &[]);
        prop_assert_eq!(found.warnings.len(), 0);
        prop_assert_eq!(&found.machines, &machines);
        for machine in &machines {
            let alone = parse_files(&machine.line_for_stock_hook(), &[]);
            prop_assert_eq!(alone.machines, vec![MachineLine { speed_factor: 1.0, ..machine.clone() }]);
        }
    }

    #[test]
    fn machines_of_any_text_have_one_line(text in "[ -~\n\t]{0,200}") {
        for machine in parse_files(&text, &[]).machines {
            let line = machine.line_for_stock_hook();
            prop_assert!(!line.contains(['\n', ';', '#']));
            prop_assert_eq!(parse_files(&line, &[]).machines.len(), 1);
        }
    }

    #[test]
    fn random_text_never_panics(text in "\\PC{0,100}") {
        parse_files(&text, &[]);
    }
}
