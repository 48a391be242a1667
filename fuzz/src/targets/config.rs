//! The configuration: its owner's, but a mistake in it has to be a message.

use std::path::Path;

use hookrun_config::Config;
use hookrun_nix::dirs::Dirs;

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = Path::new("/etc/hookrun/hookrun.toml");
    let config = match Config::parse(path, &text) {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            assert!(
                said.starts_with("/etc/hookrun/hookrun.toml") && !said.contains('\n'),
                "one line: {said:?}"
            );
            return;
        }
    };
    // The same text is the same configuration.
    assert!(Config::parse(path, &text).is_ok_and(|again| again == config));
    for (name, plugin) in &config.plugins {
        // Files are named after plugins.
        assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'), "{name:?}");
        let _ =
            (plugin.filter.admits_name("hello-2.12"), config.line_of(&["plugins", name, "grant"]));
        for limit in hookrun_config::Limit::ALL {
            assert!(plugin.limits.get(*limit) > 0, "nothing is unlimited, and nothing is zero");
        }
    }
    let dirs = Dirs { config: path.to_owned(), state: "/var/lib/hookrun".into() };
    if let Err(error) = hookrun_capability::mail::check(&config, &dirs) {
        assert!(!error.message.contains('\n'));
    }
}
