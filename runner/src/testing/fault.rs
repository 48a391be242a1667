//! Variants of a scenario: a capability that is denied, or whose service fails. The same steps run
//! under each, and a plugin that reports success although a call failed does not pass.

use std::fmt;

use hookrun_capability::CapabilityError;
use hookrun_capability::script::{self, Rule, Scripted};
use hookrun_config::Capability;

/// A variant of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variant {
    /// As the scenario is written.
    Usual,
    /// A capability is not granted.
    Denied(Capability),
    /// The service of a capability fails.
    Failing(Capability, Fault),
}

/// How a service fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It refuses: a permission or a credential is wrong.
    Refuse,
    /// It does not answer in time.
    Timeout,
    /// It answers something else.
    Garbage,
    /// It answers late.
    Slow,
    /// It answers with this HTTP status.
    Status(u16),
}

impl Variant {
    /// Returns the capability that the variant is about.
    pub const fn capability(&self) -> Option<Capability> {
        match self {
            Self::Usual => None,
            Self::Denied(capability) | Self::Failing(capability, _) => Some(*capability),
        }
    }

    /// Returns whether a run that met the fault may report success.
    pub fn may_succeed(&self) -> bool {
        match self {
            Self::Usual | Self::Failing(_, Fault::Garbage | Fault::Slow) => true,
            Self::Denied(_) | Self::Failing(_, Fault::Refuse | Fault::Timeout) => false,
            Self::Failing(_, Fault::Status(status)) => *status < 400,
        }
    }

    /// Returns the rules that make the service fail.
    pub fn rules(&self) -> Vec<Rule> {
        let Self::Failing(capability, fault) = self else { return Vec::new() };
        let calls = match capability {
            Capability::Http => vec![script::HTTP.to_owned()],
            other => interfaces(*other).iter().map(|name| format!("{name}.*")).collect(),
        };
        let answer = match fault {
            Fault::Refuse => Scripted::Error(CapabilityError::refused(format!(
                "{}: the service refuses the request (scripted); correct its permissions",
                capability.name()
            ))),
            Fault::Timeout => Scripted::Timeout,
            Fault::Garbage => Scripted::Garbage,
            Fault::Slow => Scripted::Slow,
            Fault::Status(status) => Scripted::status(*status),
        };
        let rule = |call| {
            let answer = answer.clone();
            Rule { call, arguments: None, method: None, url: None, times: None, answer }
        };
        calls.into_iter().map(rule).collect()
    }

    /// Returns whether a refused host call, such as `mail.send`, is one of the capability.
    pub fn is_about(&self, call: &str) -> bool {
        let interface = call.split('.').next().unwrap_or_default();
        self.capability().is_some_and(|capability| interfaces(capability).contains(&interface))
    }

    /// Parses `CAPABILITY=FAULT`.
    ///
    /// # Errors
    /// The text does not have this form.
    pub fn parse_fault(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "--fault `{text}` is not CAPABILITY=FAULT; write for example `http=503`, `mail=refuse`, `object-store=timeout`, \
                 `state=garbage` or `http=slow`"
            )
        };
        let (capability, fault) = text.split_once('=').ok_or_else(form)?;
        let capability = capability_of(capability)?;
        let fault = match fault {
            "refuse" => Fault::Refuse,
            "timeout" => Fault::Timeout,
            "garbage" => Fault::Garbage,
            "slow" => Fault::Slow,
            status => match status.parse() {
                Ok(status @ 100..=599) => Fault::Status(status),
                _ => return Err(form()),
            },
        };
        Ok(Self::Failing(capability, fault))
    }
}

/// Returns the interfaces whose functions a capability covers.
fn interfaces(capability: Capability) -> &'static [&'static str] {
    match capability {
        Capability::NixStore => &["nix-store"],
        // An upload to a binary cache goes to an object store.
        Capability::ObjectStore => &["object-store", "binary-cache"],
        Capability::Signing => &["signing"],
        Capability::Mail => &["mail"],
        Capability::State => &["state"],
        Capability::Http => &["http"],
    }
}

/// Returns the capability with this name.
///
/// # Errors
/// There is no such capability.
pub fn capability_of(name: &str) -> Result<Capability, String> {
    Capability::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
        let known = Capability::ALL.map(Capability::name);
        format!("there is no capability `{name}`; {}", hookrun_config::suggestion(name, known))
    })
}

/// Shows the variant as in `tolerates`: empty for the usual one, `deny mail`, `mail=refuse`.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usual => Ok(()),
            Self::Denied(capability) => write!(f, "deny {}", capability.name()),
            Self::Failing(capability, fault) => {
                write!(f, "{}=", capability.name())?;
                match fault {
                    Fault::Refuse => f.write_str("refuse"),
                    Fault::Timeout => f.write_str("timeout"),
                    Fault::Garbage => f.write_str("garbage"),
                    Fault::Slow => f.write_str("slow"),
                    Fault::Status(status) => write!(f, "{status}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_parsed_and_shown_in_the_same_form() {
        for text in
            ["http=503", "mail=refuse", "object-store=timeout", "state=garbage", "http=slow"]
        {
            assert_eq!(Variant::parse_fault(text).unwrap().to_string(), text);
        }
        insta::assert_snapshot!(Variant::parse_fault("mail=broken").unwrap_err(), @"--fault `mail=broken` is not CAPABILITY=FAULT; write for example `http=503`, `mail=refuse`, `object-store=timeout`, `state=garbage` or `http=slow`");
        insta::assert_snapshot!(Variant::parse_fault("mial=refuse").unwrap_err(), @"there is no capability `mial`; did you mean `mail`?");
        assert!(!Variant::parse_fault("http=503").unwrap().may_succeed());
        assert!(Variant::parse_fault("http=204").unwrap().may_succeed());
    }
}
