//! The `config` table.

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Which rule.
    pub mode: Mode,
    /// How fast this machine is; none: machines come first.
    pub local_speed_factor: Option<f64>,
    /// Features whose machines are kept for those who require them.
    pub keep_free: Vec<String>,
}

/// Which rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// [`crate::balanced`].
    #[default]
    Balanced,
    /// [`crate::stock`].
    Stock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            local_speed_factor: None,
            keep_free: ["big-parallel", "kvm", "nixos-test"].map(ToOwned::to_owned).into(),
        }
    }
}
