use super::*;

use hookrun_config::StoreScope;

fn config(text: &str) -> Config {
    Config::parse(std::path::Path::new("/etc/hookrun/hookrun.toml"), text).unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn everything() -> Wants {
    let mut wants = Wants::default();
    (wants.nix_store, wants.signing) = (StoreScope::Closure, Want::Optional);
    (wants.object_store, wants.mail) = (Want::Required, Want::Required);
    (wants.state, wants.http) = (Want::Required, Want::Required);
    wants
}

/// A grant of everything, with one name of each kind.
fn full(name: &str) -> Grant {
    let mut grant = Grant::default();
    for capability in Capability::ALL {
        let wants = Wants { nix_store: StoreScope::Closure, ..Wants::default() };
        capability.give(&mut grant, &wants, name);
    }
    grant
}

#[test]
fn an_empty_grant_grants_nothing() {
    let effective =
        Effective::decide(&Wants::default(), &Grant::default(), &Config::default()).unwrap();
    assert_eq!(effective, Effective::default());
    let target = HttpTarget {
        method: "GET".to_owned(),
        url: http::HttpUrl::parse("https://example.org/").unwrap(),
    };
    for need in [
        Need::Granted(Capability::State),
        Need::Granted(Capability::NixStore),
        Need::Named(Capability::ObjectStore, "a"),
        Need::Named(Capability::Signing, "a"),
        Need::Named(Capability::Mail, "a"),
        Need::Wanted(Capability::Http),
        Need::Http(&target),
    ] {
        assert!(effective.check(&Wants::default(), need).is_err(), "{need:?}");
    }
    for need in [Need::Nothing("log"), Need::Nothing("config")] {
        assert_eq!(effective.check(&Wants::default(), need), Ok(()), "{need:?}");
    }
}

#[test]
fn a_required_capability_without_a_grant_names_the_line() {
    let full = Grant { signing: Vec::new(), ..full("cache") };
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

/// A capability must be named by both the metadata and the grant.
#[test]
fn a_capability_has_to_be_wanted_and_granted() {
    let full = full("a");
    let target = HttpTarget {
        method: "GET".to_owned(),
        url: http::HttpUrl::parse("https://example.org/").unwrap(),
    };
    let http = Need::Http(&target);
    let wanted = Wants { signing: Want::Required, ..everything() };
    for need in [
        Need::Granted(Capability::State),
        Need::Granted(Capability::NixStore),
        Need::Named(Capability::ObjectStore, "a"),
        Need::Named(Capability::Signing, "a"),
        Need::Named(Capability::Mail, "a"),
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
    for need in [
        Need::Named(Capability::ObjectStore, "b"),
        Need::Named(Capability::Signing, "b"),
        Need::Named(Capability::Mail, "b"),
        Need::Named(Capability::ObjectStore, ""),
    ] {
        assert!(matches!(another(need), Err(Refusal::Ungranted { .. })), "{need:?}");
    }
}

#[test]
fn a_grant_is_limited_to_what_the_plugin_wants() {
    let generous = full("default");
    let wants = Wants { nix_store: StoreScope::Outputs, ..Wants::default() };
    let effective = Effective::decide(&wants, &generous, &Config::default()).unwrap();
    assert_eq!(
        effective,
        Effective::of(&wants, &Grant { nix_store: StoreScope::Outputs, ..Grant::default() })
    );
    assert_eq!(
        effective.check(&wants, Need::Named(Capability::Mail, "default")),
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
    insta::assert_snapshot!(refused(Need::Named(Capability::ObjectStore, "other")), @r#"plugin `upload` has no grant for object-store `other`; write `object-store = ["cache", "other"]` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml"#);
    insta::assert_snapshot!(refused(Need::Named(Capability::Signing, "key-1")), @r#"plugin `upload` has no grant for signing `key-1`; write `signing = ["key-1"]` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml"#);
    insta::assert_snapshot!(refused(Need::Granted(Capability::State)), @"plugin `upload` has no grant for state; write `state = true` under [plugins.upload.grant] in /etc/hookrun/hookrun.toml");
    let unwanted = Effective::default()
        .check(&Wants::default(), Need::Named(Capability::Mail, "default"))
        .unwrap_err();
    insta::assert_snapshot!(unwanted.message("upload", file), @"plugin `upload` may not use `mail`: its metadata does not ask for it; its author must add `mail` to the plugin's `wants`");
}
