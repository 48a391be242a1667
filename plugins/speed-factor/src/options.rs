//! The plugin's `config` table.

/// The plugin's configuration.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The speed of this machine. Without it, other machines are preferred.
    pub local_speed_factor: Option<f64>,
    /// Features whose machines are kept free for derivations that require them.
    pub keep_free: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            local_speed_factor: None,
            keep_free: ["big-parallel", "kvm", "nixos-test"].map(ToOwned::to_owned).into(),
        }
    }
}
