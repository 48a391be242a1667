//! The bundled policy in the simulator, against Nix's own rule: figures beside their aims.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What the bundled policy is to reach in the simulator: derivations, fleet, median of the makespan
/// over that of Nix's rule.
const AIMS_SIMULATED: [(u32, &str, f64); 4] =
    [(500, "four", 0.72), (5000, "four", 0.94), (500, "fifty", 0.72), (5000, "fifty", 0.58)];
/// Nine of ten traces at most.
const AIM_SIMULATED_P90: f64 = 1.1;

/// `--part builders-sim`: the simulator's figures beside their aims and the lower bound. The traces
/// are generated, so the figures are the same on every machine.
pub(super) fn run(program: &Path, seeds: u16) -> Result<()> {
    println!(
        "{:<36} {:>8} {:>8} {:>12}  aim",
        "makespan over Nix's own rule", "median", "p90", "lower bound"
    );
    for (nodes, fleet, aim) in AIMS_SIMULATED {
        let output = Command::new(program)
            .args([
                "builders",
                "simulate",
                "--format",
                "json",
                "--generate",
                &format!("1,{nodes},{fleet}"),
                "--seeds",
                &seeds.to_string(),
            ])
            .output()
            .context("hookrun does not start")?;
        if !output.status.success() {
            bail!("the simulation failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let figure = |pointer: &str| {
            report.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN)
        };
        let (median, p90) =
            (figure("/rules/1/over-stock/median"), figure("/rules/1/over-stock/p90"));
        let met = median <= aim && p90 <= AIM_SIMULATED_P90;
        println!(
            "{:<36} {median:>8.3} {p90:>8.3} {:>12.3}  at most {aim} and {AIM_SIMULATED_P90}: {}",
            format!("{nodes} builds, {fleet} machines, {seeds} seeds"),
            figure("/bound/over-stock/median"),
            if met { "met" } else { "MISSED" }
        );
    }
    Ok(())
}
