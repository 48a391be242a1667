//! The table of limits: key, default, unit and meaning. Documentation and messages are generated
//! from it; `hookrun_host::limits` enforces them. No limit is infinite by default.

use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::suggestion;

/// The unit of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, written `"128MiB"` or as a number.
    Bytes,
    /// Milliseconds, written `"60s"`.
    Time,
    /// A plain number.
    Count,
}

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $variant:ident = $key:literal, $unit:ident, $default:expr;)+) => {
        /// One limit of a run.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Limit { $($(#[doc = $doc])+ $variant,)+ }

        impl Limit {
            /// All limits, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the key under `[plugins.NAME.limits]`.
            pub const fn key(self) -> &'static str { match self { $(Self::$variant => $key,)+ } }
            /// Returns the unit.
            pub const fn unit(self) -> Unit { match self { $(Self::$variant => Unit::$unit,)+ } }
            /// Returns the default in bytes, milliseconds or pieces.
            pub const fn default(self) -> u64 { match self { $(Self::$variant => $default,)+ } }
            /// Returns the description, which is one sentence.
            pub const fn doc(self) -> &'static str { match self { $(Self::$variant => concat!($($doc),+),)+ } }
        }
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

limits! {
    /// Wall time of one run in the worker, without the calls of object stores and mail.
    WallTime = "wall-time", Time, 60_000;
    /// Wall time of one builder selection, during which Nix is blocked.
    SelectionTime = "selection-time", Time, 2_000;
    /// Time that calls of object stores and mail take in one run; it does not count as `wall-time`.
    StreamTime = "stream-time", Time, 86_400_000;
    /// Linear memory of the plugin.
    Memory = "memory", Bytes, 128 * MIB;
    /// Elements of all tables.
    TableElements = "table-elements", Count, 100_000;
    /// Core instances, memories and tables, each.
    Instances = "instances", Count, 100;
    /// Stack of the plugin.
    Stack = "stack", Bytes, 512 * KIB;
    /// Host calls of one run.
    HostCalls = "host-calls", Count, 100_000;
    /// Calls of WASI (clocks, random numbers, polls, streams) in one run; language runtimes make
    /// many.
    WasiCalls = "wasi-calls", Count, 100_000;
    /// Resources (such as NAR handles) open at once; of WASI's streams and pollables four times as
    /// many.
    Handles = "handles", Count, 64;
    /// Bytes in one host call, either way.
    CallBytes = "call-bytes", Bytes, 8 * MIB;
    /// Bytes in all host calls of one run; NAR streams stay in the host and do not count.
    HostBytes = "host-bytes", Bytes, 256 * MIB;
    /// Items of a list handed over in one host call: paths, keys, recipients, pollables.
    ListItems = "list-items", Count, 20_000;
    /// Random bytes in one call.
    RandomBytes = "random-bytes", Bytes, 64 * KIB;
    /// Log messages of one run, standard output and error included.
    LogBytes = "log-bytes", Bytes, 256 * KIB;
    /// The result of one run.
    OutputBytes = "output-bytes", Bytes, MIB;
    /// Keys and values in the plugin's state.
    StateBytes = "state-bytes", Bytes, MIB;
    /// Keys in the plugin's state.
    StateKeys = "state-keys", Count, 10_000;
    /// One key of the plugin's state.
    StateKeyBytes = "state-key-bytes", Bytes, 512;
    /// Mails of one run.
    Mails = "mails", Count, 20;
    /// One mail: subject, text, HTML and headers together.
    MailBytes = "mail-bytes", Bytes, MIB;
    /// Time to compile the plugin.
    CompileTime = "compile-time", Time, 60_000;
    /// Memory of the process that compiles the plugin.
    CompileMemory = "compile-memory", Bytes, 2 * GIB;
    /// HTTP requests of one run under way at once.
    HttpConnections = "http-connections", Count, 16;
    /// Header section of one HTTP request or response, and its trailers.
    HttpHeaderBytes = "http-header-bytes", Bytes, 64 * KIB;
    /// Body of one HTTP request.
    HttpRequestBytes = "http-request-bytes", Bytes, 8 * MIB;
    /// Body of one HTTP response.
    HttpResponseBytes = "http-response-bytes", Bytes, 32 * MIB;
    /// Name look-up, connection and TLS of one HTTP request.
    HttpConnectTime = "http-connect-time", Time, 10_000;
    /// From an HTTP connection to the header section of the response.
    HttpFirstByteTime = "http-first-byte-time", Time, 30_000;
    /// Between two pieces of the body of an HTTP response.
    HttpBetweenBytesTime = "http-between-bytes-time", Time, 30_000;
}

/// The limits of one plugin: the defaults, and the values that the configuration overrides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    overrides: Vec<(Limit, u64)>,
}

impl Limits {
    /// Returns the value in force, in the limit's unit.
    pub fn get(&self, limit: Limit) -> u64 {
        self.overrides
            .iter()
            .find(|(key, _)| *key == limit)
            .map_or(limit.default(), |(_, value)| *value)
    }

    /// Returns the value in force of a time limit.
    pub fn time(&self, limit: Limit) -> Duration {
        Duration::from_millis(self.get(limit))
    }

    /// Returns whether it was set in the configuration.
    pub fn is_set(&self, limit: Limit) -> bool {
        self.overrides.iter().any(|(key, _)| *key == limit)
    }

    /// Overrides one limit.
    pub fn set(&mut self, limit: Limit, value: u64) {
        self.overrides.retain(|(key, _)| *key != limit);
        self.overrides.push((limit, value));
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LimitsVisitor)
    }
}

struct LimitsVisitor;

impl<'de> Visitor<'de> for LimitsVisitor {
    type Value = Limits;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of limits")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Limits, M::Error> {
        let mut limits = Limits::default();
        while let Some(limit) = map.next_key::<Limit>()? {
            limits.set(limit, map.next_value_seed(limit)?);
        }
        Ok(limits)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        Self::ALL.iter().copied().find(|limit| limit.key() == key).ok_or_else(|| {
            let hint = suggestion(&key, Self::ALL.iter().map(|limit| limit.key()));
            D::Error::custom(format!("unknown limit `{key}`; {hint}"))
        })
    }
}

/// Reads the value of this limit.
impl<'de> DeserializeSeed<'de> for Limit {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        self.parse(&toml::Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Limit {
    /// Formats a value of this limit: `128 MiB`, `60s`, `64`.
    pub fn show(self, value: u64) -> String {
        match self.unit() {
            Unit::Bytes => bytesize::ByteSize(value).display().iec().to_string(),
            Unit::Time => humantime::format_duration(Duration::from_millis(value)).to_string(),
            Unit::Count => value.to_string(),
        }
    }

    /// Formats a value as a line of the configuration: `memory = "256MiB"`.
    pub fn line(self, value: u64) -> String {
        match self.unit() {
            Unit::Count => format!("{} = {value}", self.key()),
            Unit::Bytes if value.is_multiple_of(GIB) => {
                format!("{} = \"{}GiB\"", self.key(), value / GIB)
            }
            Unit::Bytes if value.is_multiple_of(MIB) => {
                format!("{} = \"{}MiB\"", self.key(), value / MIB)
            }
            Unit::Bytes if value < KIB => format!("{} = \"{value}B\"", self.key()),
            Unit::Bytes => format!("{} = \"{}KiB\"", self.key(), value.div_ceil(KIB)),
            Unit::Time => {
                format!(
                    "{} = \"{}\"",
                    self.key(),
                    humantime::format_duration(Duration::from_millis(value))
                        .to_string()
                        .replace(' ', "")
                )
            }
        }
    }

    /// Returns the message of a run that reached this limit of `allowed`. It names the limit, the
    /// use and the line to write.
    pub fn reached(self, plugin: &str, allowed: u64, used: Option<u64>) -> String {
        self.reached_in(plugin, allowed, used, None)
    }

    /// Returns the message of [`Limit::reached`] for a limit that was reached during the host call
    /// `call`, such as `mail.send`.
    pub fn reached_in(
        self,
        plugin: &str,
        allowed: u64,
        used: Option<u64>,
        call: Option<&str>,
    ) -> String {
        let wanted = used
            .map(|used| format!(", wanted {}", self.show_beside(used, allowed)))
            .unwrap_or_default();
        let call = call.map(|call| format!(" in the host call `{call}`")).unwrap_or_default();
        format!(
            "plugin `{plugin}` reached its limit `{}` ({}{wanted}){call}; to allow more, write `{}` under \
             [plugins.{plugin}.limits]",
            self.key(),
            self.show(allowed),
            self.line(self.enough(allowed, used)),
        )
    }

    /// Formats `used` so that rounding does not make it look like `allowed`.
    fn show_beside(self, used: u64, allowed: u64) -> String {
        let shown = self.show(used);
        if self.unit() == Unit::Bytes && shown == self.show(allowed) {
            format!("{used} bytes")
        } else {
            shown
        }
    }

    /// Returns a value to write instead of `allowed`: twice as much, or the requested amount if
    /// that is more.
    fn enough(self, allowed: u64, used: Option<u64>) -> u64 {
        let used = used.unwrap_or_default();
        let wanted = if self.unit() == Unit::Bytes {
            used.checked_next_power_of_two().unwrap_or(used)
        } else {
            used
        };
        allowed.saturating_mul(2).max(wanted)
    }

    /// Parses the configured value of this limit.
    ///
    /// # Errors
    /// Returns a fragment with the expected form.
    pub fn parse(self, value: &toml::Value) -> Result<u64, String> {
        let expected = match self.unit() {
            Unit::Bytes => "a size such as \"128MiB\"",
            Unit::Time => "a duration such as \"60s\"",
            Unit::Count => "a whole number",
        };
        let wrong = || format!("`{}` must be {expected}, and is {value}", self.key());
        let parsed = match (value, self.unit()) {
            (toml::Value::Integer(number), Unit::Bytes | Unit::Count) => {
                u64::try_from(*number).ok()
            }
            (toml::Value::String(text), Unit::Bytes) => {
                text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
            }
            (toml::Value::String(text), Unit::Time) => humantime::parse_duration(text)
                .ok()
                .and_then(|time| u64::try_from(time.as_millis()).ok()),
            _ => None,
        };
        parsed.filter(|value| *value > 0).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_limit_use_and_line() {
        assert_eq!(
            Limit::Memory.reached("greedy", 128 * MIB, Some(200 * MIB)),
            "plugin `greedy` reached its limit `memory` (128.0 MiB, wanted 200.0 MiB); to allow more, write `memory = \"256MiB\"` \
             under [plugins.greedy.limits]"
        );
        assert_eq!(Limit::WallTime.line(120_000), "wall-time = \"2m\"");
        // The suggested value is sufficient, and rounding does not hide the difference.
        let message = Limit::CallBytes.reached_in("greedy", MIB, Some(5 * MIB), Some("mail.send"));
        assert!(
            message.contains(
                "in the host call `mail.send`; to allow more, write `call-bytes = \"8MiB\"`"
            ),
            "{message}"
        );
        let message = Limit::HostBytes.reached("greedy", MIB, Some(MIB + 1));
        assert!(message.contains("(1.0 MiB, wanted 1048577 bytes)"), "{message}");
        assert!(
            Limit::HostBytes.reached("greedy", u64::MAX, Some(u64::MAX)).contains("host-bytes")
        );
    }

    /// Compares the table of docs/configuration.md with this one.
    #[test]
    fn the_documentation_has_the_same_table() {
        let page = include_str!("../../../../docs/configuration.md");
        for limit in Limit::ALL {
            let line = limit.line(limit.default());
            let (key, value) = line.split_once(" = ").unwrap();
            let row = format!("| `{key}` | `{value}` | {} |", limit.doc().trim());
            assert!(page.contains(&row), "docs/configuration.md lacks the row\n{row}");
        }
    }

    #[test]
    fn values_need_a_unit_and_are_positive() {
        assert_eq!(Limit::Memory.parse(&toml::Value::String("2MiB".into())), Ok(2 * MIB));
        assert_eq!(Limit::WallTime.parse(&toml::Value::String("2m".into())), Ok(120_000));
        assert!(
            Limit::HostCalls.parse(&toml::Value::Integer(0)).is_err(),
            "nothing is unlimited, and nothing is zero"
        );
        assert!(Limit::WallTime.parse(&toml::Value::Integer(5)).is_err());
    }
}
