//! Build traces: JSON lines that describe machines, derivations to build, and their durations.
//! Written by `hookrun builders trace` and by the generator, read by `hookrun builders simulate`.
//!
//! The first line is the header; lines of machines and derivations follow in any order, and unknown
//! keys are ignored, so that traces of newer versions can be read. `docs/build-traces.md` describes
//! the format.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

/// The version of the format that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// The largest number of derivations in one trace. Nixpkgs has a tenth of it.
const MAX_DERIVATIONS: usize = 1 << 20;
/// The largest number of machines in one trace.
const MAX_MACHINES: usize = 1 << 16;
/// The default transfer rate: a network of 1 Gbit/s.
pub const DEFAULT_MB_PER_S: f64 = 100.0;

/// A consistent trace: ids are 0, 1, 2, ..., dependencies come before their dependents, and times
/// are finite and positive.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// The first line.
    pub header: Header,
    /// The machines, in their order.
    pub machines: Vec<TraceMachine>,
    /// The derivations, by id.
    pub derivations: Vec<TraceDerivation>,
}

/// The origin of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub version: u32,
    /// The seed of the generator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The number of derivations that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<usize>,
    /// The name of the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<String>,
}

impl Default for Header {
    fn default() -> Self {
        Self { version: VERSION, seed: None, nodes: None, fleet: None }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceMachine {
    /// The name, or the store URI.
    pub name: String,
    /// The number of concurrent builds.
    pub slots: u32,
    /// The speed factor in the machines file.
    pub speed_factor: f64,
    /// The real speed of one slot: a build of `work_s` runs `work_s / speed` seconds.
    pub speed: f64,
    /// The transfer rate to and from it, for each build.
    #[serde(default = "default_mb_per_s")]
    pub mb_per_s: f64,
    /// The systems that it builds for; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub systems: Vec<String>,
    /// The supported features.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The mandatory features.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mandatory_features: Vec<String>,
}

fn default_mb_per_s() -> f64 {
    DEFAULT_MB_PER_S
}

impl TraceMachine {
    /// Returns whether it can build this derivation, like
    /// [`hookrun_nix::machines::MachineLine::fits`].
    pub fn fits(&self, derivation: &TraceDerivation) -> bool {
        let known = |feature: &String| {
            self.features.contains(feature) || self.mandatory_features.contains(feature)
        };
        let system = match derivation.system.as_deref() {
            None | Some("builtin") => true,
            Some(system) => {
                self.systems.is_empty() || self.systems.iter().any(|known| known == system)
            }
        };
        system
            && derivation.features.iter().all(known)
            && self
                .mandatory_features
                .iter()
                .all(|mandatory| derivation.features.contains(mandatory))
    }
}

/// A derivation to build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TraceDerivation {
    /// The id: 0, 1, 2 and so on, without gaps.
    pub id: usize,
    /// The package name.
    pub pname: String,
    /// The ids of derivations that must be built first; all are smaller.
    #[serde(default)]
    pub deps: Vec<usize>,
    /// The duration in seconds on a machine of speed 1.
    pub work_s: f64,
    /// The size of the outputs in units of 10^6 bytes.
    #[serde(default)]
    pub out_mb: f64,
    /// The duration that a host could know: a median for this package name at speed 1.
    #[serde(default)]
    pub history_s: Option<f64>,
    /// The time in seconds before which the build is not offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_s: Option<f64>,
    /// Its system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The required features.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The Nix command that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Whether it may be built on the machine on which Nix runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_ok: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Trace(Header),
    Machine(TraceMachine),
    Drv(TraceDerivation),
}

/// The reason why a trace cannot be used: the line and the problem.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TraceError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The problem, as a part of a message.
    pub problem: String,
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// Returns the first line that is not valid.
    pub fn read(from: impl BufRead) -> Result<Self, TraceError> {
        let mut header = None;
        let mut machines = Vec::new();
        let mut derivations: Vec<(usize, TraceDerivation)> = Vec::new();
        for (index, line) in from.lines().enumerate() {
            let number = index + 1;
            let wrong = |problem: String| TraceError { line: number, problem };
            let line = line.map_err(|error| wrong(format!("cannot be read ({error})")))?;
            if line.trim().is_empty() {
                continue;
            }
            let value: serde_json::Value = serde_json::from_str(&line)
                .map_err(|error| wrong(format!("is not JSON ({error})")))?;
            let kind = value.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
            if !matches!(kind, "trace" | "machine" | "drv") {
                // A type of line that a newer version has added.
                continue;
            }
            let line: Line =
                serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
            match (line, &header) {
                (Line::Trace(found), None) if found.version == 0 || found.version > VERSION => {
                    return Err(wrong(format!(
                        "version {} is not supported; this hookrun reads version {VERSION}",
                        found.version
                    )));
                }
                (Line::Trace(found), None) => header = Some(found),
                (_, None) => {
                    let first = r#"{"type":"trace","version":1}"#;
                    return Err(wrong(format!(
                        "the first line must be the header, such as `{first}`"
                    )));
                }
                (Line::Trace(_), Some(_)) => {
                    return Err(wrong(
                        "a second header; a file must contain only one trace".to_owned(),
                    ));
                }
                (Line::Machine(machine), Some(_)) => {
                    check_machine(&machine).map_err(wrong)?;
                    machines.push(machine);
                }
                (Line::Drv(derivation), Some(_)) => {
                    check_derivation(&derivation).map_err(wrong)?;
                    derivations.push((number, derivation));
                }
            }
            if derivations.len() > MAX_DERIVATIONS || machines.len() > MAX_MACHINES {
                return Err(wrong(format!(
                    "more than {MAX_DERIVATIONS} derivations or {MAX_MACHINES} machines; shorten the trace"
                )));
            }
        }
        let header = header.ok_or(TraceError {
            line: 1,
            problem: "the file is empty; the first line must be the header".to_owned(),
        })?;
        Ok(Self { header, machines, derivations: in_order(derivations)? })
    }

    /// Writes the trace.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let mut line = |line: &Line| -> std::io::Result<()> {
            serde_json::to_writer(&mut *to, line)?;
            to.write_all(b"\n")
        };
        line(&Line::Trace(self.header.clone()))?;
        self.machines.iter().try_for_each(|machine| line(&Line::Machine(machine.clone())))?;
        self.derivations.iter().try_for_each(|derivation| line(&Line::Drv(derivation.clone())))
    }
}

/// Checks that ids have no gaps and dependencies come before their dependents.
fn in_order(
    mut derivations: Vec<(usize, TraceDerivation)>,
) -> Result<Vec<TraceDerivation>, TraceError> {
    derivations.sort_by_key(|(_, derivation)| derivation.id);
    for (expected, (line, derivation)) in derivations.iter().enumerate() {
        if derivation.id != expected {
            let problem = format!(
                "id {} instead of {expected}; ids must be 0, 1, 2, ..., each once",
                derivation.id
            );
            return Err(TraceError { line: *line, problem });
        }
        if let Some(late) = derivation.deps.iter().find(|dep| **dep >= expected) {
            let problem = format!(
                "depends on {late}, which does not come before {expected}; ids of dependencies must be smaller"
            );
            return Err(TraceError { line: *line, problem });
        }
    }
    Ok(derivations.into_iter().map(|(_, derivation)| derivation).collect())
}

fn check_machine(machine: &TraceMachine) -> Result<(), String> {
    let TraceMachine { name, slots: _, speed_factor, speed, mb_per_s, .. } = machine;
    for (key, value) in [("speed_factor", speed_factor), ("speed", speed), ("mb_per_s", mb_per_s)] {
        if !value.is_finite() || *value <= 0.0 {
            return Err(format!("machine {name}: {key} is {value}; write a number greater than 0"));
        }
    }
    Ok(())
}

fn check_derivation(derivation: &TraceDerivation) -> Result<(), String> {
    let TraceDerivation { pname, work_s, out_mb, history_s, start_s, .. } = derivation;
    let times = [
        ("work_s", Some(work_s)),
        ("out_mb", Some(out_mb)),
        ("history_s", history_s.as_ref()),
        ("start_s", start_s.as_ref()),
    ];
    for (key, value) in times {
        if let Some(value) = value.filter(|value| !value.is_finite() || **value < 0.0) {
            return Err(format!(
                "derivation {pname}: {key} is {value}; write a number that is not negative"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = r#"{"type":"trace","version":1,"seed":1,"nodes":2,"fleet":"four"}
{"type":"drv","id":1,"pname":"b","deps":[0],"work_s":3.5,"out_mb":1,"history_s":null,"colour":"red"}
{"type":"machine","name":"m0","slots":2,"speed_factor":1,"speed":1,"mb_per_s":100}
{"type":"drv","id":0,"pname":"a","deps":[],"work_s":12.5,"out_mb":4.2,"history_s":11.9}
{"type":"weather","sky":"blue"}
"#;

    #[test]
    fn lines_are_read_in_any_order_and_written_back() {
        let trace = Trace::read(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(
            trace.derivations.iter().map(|d| d.pname.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        insta::assert_snapshot!(String::from_utf8(text.clone()).unwrap());
        assert_eq!(Trace::read(text.as_slice()).unwrap(), trace);
    }

    #[test]
    fn errors_name_their_line() {
        let header = r#"{"type":"trace","version":1}"#;
        let texts = [
            String::new(),
            "[".to_owned(),
            r#"{"type":"machine","name":"m","slots":1,"speed_factor":1,"speed":1}"#.to_owned(),
            r#"{"type":"trace","version":2}"#.to_owned(),
            format!("{header}\n{header}"),
            format!(
                "{header}\n{}",
                r#"{"type":"machine","name":"m","slots":1,"speed_factor":0,"speed":1}"#
            ),
            format!(
                "{header}\n{}",
                r#"{"type":"machine","name":"m","slots":-1,"speed_factor":1,"speed":1}"#
            ),
            format!("{header}\n{}", r#"{"type":"drv","id":0,"pname":"a","deps":[0],"work_s":1}"#),
            format!("{header}\n\n{}", r#"{"type":"drv","id":1,"pname":"a","work_s":1}"#),
            format!("{header}\n{}", r#"{"type":"drv","id":0,"pname":"a","work_s":-1}"#),
            format!("{header}\n{}", r#"{"type":"drv","id":0,"work_s":1}"#),
        ];
        let errors: Vec<String> = texts
            .iter()
            .map(|text| Trace::read(text.as_bytes()).unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(errors.join("\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String, cut in 0..EXAMPLE.len(), byte in 0u8..128) {
            let _ = Trace::read(text.as_bytes());
            let mut changed = EXAMPLE.as_bytes().to_vec();
            let _ = Trace::read(&changed[..cut]);
            changed[cut] = byte;
            let _ = Trace::read(changed.as_slice());
        }
    }
}
