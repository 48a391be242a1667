use std::io;

use proptest::prelude::*;

use super::*;

fn parse_files(builders: &str, files: &[(&str, &str)]) -> Machines {
    parse_with(builders, "x86_64-linux", &mut |path| match files
        .iter()
        .find(|(name, _)| Path::new(name) == path)
    {
        Some((_, "denied")) => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        Some((_, text)) => Ok((*text).to_owned()),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    })
}

fn lines(found: &Machines) -> Vec<String> {
    found.machines.iter().map(ToString::to_string).collect()
}

#[test]
fn all_columns() {
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
    // Nix cuts at `;` before it looks for `#`, so `m3` is a machine.
    insta::assert_snapshot!(lines(&found).join("\n"), @r"
    ssh://m1 x86_64-linux - 2 1 - - -
    ssh://root@m2 x86_64-linux - 1 1 - - -
    ssh://m3 x86_64-linux - 1 1 - - -
    /srv/store x86_64-linux - 1 1 - - -
    local?root=/x x86_64-linux - 0 1 - - -
    ?root=/y x86_64-linux - 1 1 - - -
    ssh-ng://h?a=b,c x86_64-linux - 1 1 - - -
    ");
}

#[test]
fn includes() {
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
    /etc/nix/more:1: column 5 (speed factor): `-2` is no speed factor; write a number over 0 such as `2`; the machine is left out
    /etc/nix/more:2: `@/etc/nix/machines` includes itself or is more than 8 files deep; remove it
    /etc/nix/machines:4: column 4 (maximum number of jobs): `many` is no number of jobs; write a whole number such as `4`; the machine is left out
    setting `builders`:1: column 8 (public host key): it is not base64; write the output of `base64 -w0` on the machine's public host key; the machine is left out
    setting `builders`:2: `@/secret` cannot be read (permission denied); make it readable or remove it
    setting `builders`:3: column 1 (store URI): a store URI is needed, such as `ssh://builder`; the machine is left out
    ");
}

#[test]
fn fitting() {
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
        let host_key = host_key.map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes));
        MachineLine {
            uri: uri.into(),
            systems: systems.into_iter().collect(),
            ssh_key: ssh_key.map(Text::from),
            max_jobs,
            speed_factor,
            supported_features: supported_features.into_iter().collect(),
            mandatory_features: mandatory_features.into_iter().collect(),
            host_key: host_key.map(Text::from),
        }
    }
}

proptest! {
    #[test]
    fn both_ways(machines in prop::collection::vec(any_machine(), 0..4), separator in prop_oneof![Just("\n"), Just(";"), Just(" ; # x\n")]) {
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
    fn any_text_gives_one_line_machines(text in "[ -~\n\t]{0,200}") {
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
