use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/hookrun/hookrun.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn the_embedded_configuration_is_valid() {
    let config = parse(EMBEDDED).unwrap();
    assert_eq!(config.plugins.keys().collect::<Vec<_>>(), ["nondeterminism", "policy"]);
}

#[test]
fn errors_name_line_key_and_fix() {
    let errors: Vec<String> = [
        "[worker]\nstrat = \"spawn\"\n",
        "[worker]\nstart = \"spwan\"\n",
        "[worker]\nidle-exit = \"soon\"\n",
        "[plugins.a]\nhooks = [\"diff\"]\n",
        "[plugins.a]\nsource = \"bundled:s3-uplaod\"\n",
        "[plugins.a]\nsource = \"oci://x/y\"\n",
        "[plugins.a]\nsource = \"a.wasm\"\n[plugins.a.grant]\nsigning = [\"cache.example.org-1\"]\n",
        "[plugins.a]\nsource = \"a.wasm\"\n[plugins.a.grant]\nmail = [\"defualt\"]\n[mail.default]\n",
        "[plugins.a]\nsource = \"a.wasm\"\n[plugins.a.limits]\nmemroy = \"1MiB\"\n",
        "[plugins.a]\nsource = \"a.wasm\"\n[plugins.a.limits]\nmemory = \"lots\"\n",
        "[plugins.a]\nsource = \"a.wasm\"\n[plugins.a.retry]\nattempts = 0\n",
        "[plugins.\"../a\"]\nsource = \"a.wasm\"\n",
        "[plugins.a\n",
    ]
    .iter()
    .map(|text| parse(text).expect_err(text))
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn invalid_resources_are_refused() {
    let errors: Vec<String> = [
        "[builders.machine-resources.m]\ngpu = -1\n",
        "[builders.machine-resources.m]\ngpu = 1.5\n",
        "[builders.machine-resources.m]\n\"g p u\" = 1\n",
        "[builders.machine-resources.m]\ngpu = 0\n",
        "[builders.machine-resources]\nm = 3\n",
        "[builders.machine-resources.m]\ngpu = 1\n[builders.machine-resources.\"ssh://m\"]\ngpu = 1\n",
        "[builders.machine-resources.m]\ngpu = 1\n[builders.shared-resources]\ngpu = 1\n",
        "[builders.machine-resources.m]\nmemory = \"8GiB\"\n[builders.feature-resources.big]\nmemroy = \"4GiB\"\n",
        "[builders.feature-resources.cuda]\ngpu = 1\n",
        "[builders.shared-resources]\nlicence = 2\n[builders.feature-resources.matlab]\nlicence = 3\n",
        "[builders.shared-resource]\nlicence = 2\n",
    ]
    .iter()
    .map(|text| parse(text).expect_err(text))
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn a_configuration_with_all_elements_is_read() {
    let config = parse(
        r#"
[worker]
start = "service"
idle-exit = "1m"
[plugins.cache]
source = "bundled:s3-upload"
hooks = ["post-build"]
filter = { name = "!*-iso", max-nar-size = "2GiB" }
retry = { attempts = 3, max-delay = "1m" }
[plugins.cache.config]
bucket = "cache"
[plugins.cache.grant]
nix-store = "closure"
object-store = ["cache"]
signing = ["cache.example.org-1"]
[plugins.cache.limits]
memory = "64MiB"
[object-stores.cache]
[signing-keys."cache.example.org-1"]
file = "/etc/nix/cache-private-key"
"#,
    )
    .unwrap();
    let cache = &config.plugins["cache"];
    assert_eq!(cache.limits.get(Limit::Memory), 64 << 20);
    assert_eq!(cache.filter.max_nar_size, Some(2 << 30));
    assert_eq!(cache.grant.nix_store, StoreScope::Closure);
    assert_eq!(config.line_of(&["plugins", "cache", "grant", "signing"]), Some(15));
    assert_eq!(config.line_of(&["plugins", "cache", "limits", "wall-time"]), Some(16));
}

proptest::proptest! {
    /// Reading any text returns a value or an error and never panics.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*") {
        let _ = parse(&text);
    }
}
