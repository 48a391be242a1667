//! The plugins compiled into this binary. `build.rs` builds them from `plugins/`.

use hookrun_config::{Plugin, PluginSource};

/// The component of each bundled plugin, by name.
const COMPONENTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/components.rs"));

/// Returns the component of a bundled plugin.
pub fn component(name: &str) -> Option<&'static [u8]> {
    COMPONENTS.iter().find(|(known, _)| *known == name).map(|(_, component)| *component)
}

/// Returns the first service that the configuration of a bundled plugin names and its grant does
/// not include: the key of the plugin's configuration, and the problem with its fix. Only bundled
/// plugins can be checked, because the host does not know the meaning of other plugins' keys.
pub fn beyond_grants(plugin: &Plugin) -> Option<(&'static str, String)> {
    if plugin.source != PluginSource::Bundled("s3-upload".to_owned()) {
        return None;
    }
    let services = [
        ("bucket", "object-store", &plugin.grant.object_store),
        ("key", "signing", &plugin.grant.signing),
    ];
    services.into_iter().find_map(|(key, interface, granted)| {
        // A plugin without any store does not load, and gets a message of its own.
        if key == "bucket" && granted.is_empty() {
            return None;
        }
        let value = plugin.config.get(key)?;
        let names = value.as_array().map_or_else(|| vec![value], |names| names.iter().collect());
        let missing = names
            .into_iter()
            .filter_map(serde_json::Value::as_str)
            .find(|name| !granted.iter().any(|granted| granted == name))?;
        let message = format!(
            "`{key}` names `{missing}`, which the grant `{interface}` of plugin `{0}` does not; \
             write `{interface} = [\"{missing}\"]` under [plugins.{0}.grant], or another `{key}`",
            plugin.name
        );
        Some((key, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_config::Config;

    #[test]
    fn a_bucket_or_key_that_no_grant_has_is_found_before_the_first_run() {
        let said = |keys: &str| {
            let text = format!(
                "[plugins.cache]\nsource = \"bundled:s3-upload\"\nconfig = {{ {keys} }}\n\
                 grant = {{ object-store = [\"c\"], signing = [\"k-1\"] }}\n\
                 [object-stores.c]\n[signing-keys.k-1]\nfile = \"k\"\n"
            );
            let config = Config::parse(std::path::Path::new("/c.toml"), &text).unwrap();
            beyond_grants(config.plugins.get("cache").unwrap())
        };
        assert_eq!(said("bucket = \"c\""), None);
        assert_eq!(said("bucket = \"c\", key = [\"k-1\"]"), None);
        insta::assert_snapshot!(said("bucket = \"d\"").unwrap().1, @r#"`bucket` names `d`, which the grant `object-store` of plugin `cache` does not; write `object-store = ["d"]` under [plugins.cache.grant], or another `bucket`"#);
        insta::assert_snapshot!(said("bucket = \"c\", key = [\"k-1\", \"k-2\"]").unwrap().1, @r#"`key` names `k-2`, which the grant `signing` of plugin `cache` does not; write `signing = ["k-2"]` under [plugins.cache.grant], or another `key`"#);
    }
}
