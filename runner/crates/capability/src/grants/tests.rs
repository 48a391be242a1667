use super::*;

const NOTHING: Defined<'_> = Defined { object_store: None, signing: None, mail: None };

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn everything() -> Wants {
    Wants {
        nix_store: StoreScope::Closure,
        object_store: Want::Required,
        signing: Want::Optional,
        mail: Want::Required,
        state: Want::Required,
        http: Want::Required,
    }
}

#[test]
fn an_empty_grant_grants_nothing() {
    let effective = Effective::decide(&Wants::default(), &Grant::default(), NOTHING).unwrap();
    assert_eq!(effective, Effective::default());
    let target = HttpTarget {
        method: "GET".to_owned(),
        place: http::Place::parse("https://example.org/").unwrap(),
    };
    for need in [
        Need::State,
        Need::NixStore,
        Need::ObjectStore("a"),
        Need::Signing("a"),
        Need::Mail("a"),
        Need::AnyHttp,
        Need::Http(&target),
    ] {
        assert!(effective.check(&Wants::default(), need).is_err(), "{need:?}");
    }
    for need in [Need::Log, Need::Config] {
        assert_eq!(effective.check(&Wants::default(), need), Ok(()), "{need:?}");
    }
}

#[test]
fn a_required_capability_without_a_grant_names_the_line() {
    let full = Grant {
        nix_store: StoreScope::Closure,
        object_store: names(&["cache"]),
        signing: Vec::new(),
        mail: names(&["default"]),
        state: true,
        http: vec![HttpGrant::everything()],
    };
    assert!(
        Effective::decide(&everything(), &full, NOTHING).is_ok(),
        "an optional one may be missing"
    );
    let defined = Defined { object_store: Some("cache"), ..NOTHING };
    for (grant, line) in [
        (Grant { nix_store: StoreScope::Outputs, ..full.clone() }, "nix-store = \"closure\""),
        (Grant { object_store: Vec::new(), ..full.clone() }, "object-store = [\"cache\"]"),
        (Grant { mail: Vec::new(), ..full.clone() }, "mail = [\"NAME\"]"),
        (Grant { state: false, ..full.clone() }, "state = true"),
        (Grant { http: Vec::new(), ..full.clone() }, "http = [{ url = \"https://HOST/\" }]"),
    ] {
        let missing = Effective::decide(&everything(), &grant, defined).unwrap_err();
        assert_eq!(missing.iter().map(|missing| missing.line.as_str()).collect::<Vec<_>>(), [line]);
    }
    let missing = Effective::decide(&everything(), &Grant::default(), defined).unwrap_err();
    let missing: Vec<&str> = missing.iter().map(|missing| missing.interface).collect();
    assert_eq!(
        missing,
        ["nix-store", "object-store", "mail", "state", "http"],
        "all of it at once"
    );
}

/// One key alone opens nothing, whichever it is; both open just what both name.
#[test]
fn it_takes_two_keys() {
    let full = Grant {
        nix_store: StoreScope::Closure,
        object_store: names(&["a"]),
        signing: names(&["a"]),
        mail: names(&["a"]),
        state: true,
        http: vec![HttpGrant::everything()],
    };
    let target = HttpTarget {
        method: "GET".to_owned(),
        place: http::Place::parse("https://example.org/").unwrap(),
    };
    let http = Need::Http(&target);
    let wanted = Wants { signing: Want::Required, ..everything() };
    for need in [
        Need::State,
        Need::NixStore,
        Need::ObjectStore("a"),
        Need::Signing("a"),
        Need::Mail("a"),
        http,
    ] {
        let check = |wants: &Wants, grant: &Grant| Effective::of(wants, grant).check(wants, need);
        assert_eq!(check(&wanted, &full), Ok(()), "{need:?}");
        assert!(
            matches!(check(&Wants::default(), &full), Err(Refusal::Unwanted { .. })),
            "{need:?}"
        );
        assert!(
            matches!(
                check(&wanted, &Grant::default()),
                Err(Refusal::Ungranted { .. } | Refusal::Http(_))
            ),
            "{need:?}"
        );
    }
    let another = |need| Effective::of(&wanted, &full).check(&wanted, need);
    for need in [Need::ObjectStore("b"), Need::Signing("b"), Need::Mail("b"), Need::ObjectStore("")]
    {
        assert!(matches!(another(need), Err(Refusal::Ungranted { .. })), "{need:?}");
    }
}

#[test]
fn a_grant_gives_no_more_than_is_wanted() {
    let generous = Grant {
        nix_store: StoreScope::Closure,
        object_store: names(&["cache"]),
        signing: names(&["key"]),
        mail: names(&["default"]),
        state: true,
        http: vec![HttpGrant::everything()],
    };
    let wants = Wants { nix_store: StoreScope::Outputs, ..Wants::default() };
    let effective = Effective::decide(&wants, &generous, NOTHING).unwrap();
    assert_eq!(effective, Effective { nix_store: StoreScope::Outputs, ..Effective::default() });
    assert_eq!(
        effective.check(&wants, Need::Mail("default")),
        Err(Refusal::Unwanted { interface: "mail" })
    );
}

#[test]
fn refusals_end_in_the_line_to_write() {
    let file = std::path::Path::new("/etc/hookrun/hookrun.toml");
    let wants = everything();
    let effective = Effective { object_store: names(&["cache"]), ..Effective::default() };
    let refused = |need| effective.check(&wants, need).unwrap_err().message("upload", file);
    insta::assert_snapshot!(refused(Need::ObjectStore("other")), @r#"plugin `upload` has no grant for object-store `other`; write `object-store = ["cache", "other"]` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml"#);
    insta::assert_snapshot!(refused(Need::Signing("key-1")), @r#"plugin `upload` has no grant for signing `key-1`; write `signing = ["key-1"]` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml"#);
    insta::assert_snapshot!(refused(Need::State), @"plugin `upload` has no grant for state; write `state = true` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml");
    let unwanted =
        Effective::default().check(&Wants::default(), Need::Mail("default")).unwrap_err();
    insta::assert_snapshot!(unwanted.message("upload", file), @"plugin `upload` may not use `mail`: its metadata does not ask for it; its author must add `mail` to the plugin's `wants`");
}
