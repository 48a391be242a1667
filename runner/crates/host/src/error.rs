//! The reasons why a plugin cannot be used.

use hookrun_config::ConfigError;

/// The reason why a plugin cannot be used, in one line that ends with the fix.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The plugin, its grants or its configuration are wrong. The message names file and line.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The schema does not allow its `config` table. The message names file and line.
    #[error(transparent)]
    Table(ConfigError),
    /// It is not compiled, and this process does not compile.
    #[error(transparent)]
    NotCompiled(ConfigError),
    /// This machine cannot run guests.
    #[error(
        "the WebAssembly engine cannot start ({0}); hookrun needs Linux on x86-64 or aarch64 and address space for 4 GiB reservations"
    )]
    Engine(String),
}
