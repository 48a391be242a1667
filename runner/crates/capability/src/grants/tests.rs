use super::*;

use hookrun_config::{HttpGrant, StoreScope};

fn config(text: &str) -> Config {
    Config::parse(std::path::Path::new("/etc/hookrun/hookrun.toml"), text).unwrap()
}

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
    let effective =
        Effective::decide(&Wants::default(), &Grant::default(), &Config::default()).unwrap();
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
        Effective::decide(&everything(), &full, &Config::default()).is_ok(),
        "an optional one may be missing"
    );
    let config = config("[object-stores.cache]\n");
    for (grant, line) in [
        (Grant { nix_store: StoreScope::Outputs, ..full.clone() }, "nix-store = \"closure\""),
        (Grant { object_store: Vec::new(), ..full.clone() }, "object-store = [\"cache\"]"),
        (Grant { mail: Vec::new(), ..full.clone() }, "mail = [\"NAME\"]"),
        (Grant { state: false, ..full.clone() }, "state = true"),
        (Grant { http: Vec::new(), ..full.clone() }, "http = [{ url = \"https://HOST/\" }]"),
    ] {
        let missing = Effective::decide(&everything(), &grant, &config).unwrap_err();
        assert_eq!(missing.iter().map(|missing| missing.line.as_str()).collect::<Vec<_>>(), [line]);
    }
    let missing = Effective::decide(&everything(), &Grant::default(), &config).unwrap_err();
    let missing: Vec<&str> = missing.iter().map(|missing| missing.interface).collect();
    assert_eq!(
        missing,
        ["nix-store", "object-store", "mail", "state", "http"],
        "all of it at once"
    );
}

/// Neither is enough alone; together they allow exactly what both name.
#[test]
fn a_capability_has_to_be_wanted_and_granted() {
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
    let effective = Effective::decide(&wants, &generous, &Config::default()).unwrap();
    assert_eq!(
        effective,
        Effective::of(&wants, &Grant { nix_store: StoreScope::Outputs, ..Grant::default() })
    );
    assert_eq!(
        effective.check(&wants, Need::Mail("default")),
        Err(Refusal::Unwanted { interface: "mail" })
    );
}

#[test]
fn refusals_end_in_the_line_to_write() {
    let file = std::path::Path::new("/etc/hookrun/hookrun.toml");
    let wants = everything();
    let grant = Grant { object_store: names(&["cache"]), ..Grant::default() };
    let effective = Effective { grant, policy: false };
    let refused = |need| effective.check(&wants, need).unwrap_err().message("upload", file);
    insta::assert_snapshot!(refused(Need::ObjectStore("other")), @r#"plugin `upload` has no grant for object-store `other`; write `object-store = ["cache", "other"]` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml"#);
    insta::assert_snapshot!(refused(Need::Signing("key-1")), @r#"plugin `upload` has no grant for signing `key-1`; write `signing = ["key-1"]` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml"#);
    insta::assert_snapshot!(refused(Need::State), @"plugin `upload` has no grant for state; write `state = true` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml");
    let unwanted =
        Effective::default().check(&Wants::default(), Need::Mail("default")).unwrap_err();
    insta::assert_snapshot!(unwanted.message("upload", file), @"plugin `upload` may not use `mail`: its metadata does not ask for it; its author must add `mail` to the plugin's `wants`");
}
