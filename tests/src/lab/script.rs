//! The derivations of a scene: a shell script of built-in commands, and its form in the Nix
//! language.

use std::fmt::Write as _;

/// The script of a derivation. It has no PATH, so it can only use shell built-ins.
#[derive(Debug, Clone)]
pub struct Script {
    text: String,
    uses: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<(String, String)>,
}

impl Script {
    /// A script that has to create `$out`.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            uses: Vec::new(),
            outputs: vec!["out".into()],
            attributes: Vec::new(),
        }
    }

    /// The output is a file with this text in every build.
    pub fn text(text: &str) -> Self {
        Self::new("printf '%s\\n' \"$content\" > $out").attribute("content", &nix_string(text))
    }

    /// The output is a file that differs in every build.
    pub fn random() -> Self {
        Self::new("read x < /proc/sys/kernel/random/uuid; echo \"$x\" > $out")
    }

    /// The output is a file that contains the output paths of these derivations, and so refers to
    /// them.
    pub fn naming<'a>(dependencies: impl IntoIterator<Item = &'a str>) -> Self {
        dependencies.into_iter().fold(Self::new("echo \"$dependencies\" > $out"), Self::uses)
    }

    /// The build fails.
    pub fn failing() -> Self {
        Self::new("echo this build fails; exit 1")
    }

    /// The output is a file of at least this many bytes that is the same in every build and does
    /// not compress well.
    pub fn large(bytes: usize) -> Self {
        Self::new(format!(
            "x=; n=0; while [ ${{#x}} -lt {chunk} ]; do n=$((n * 1103515245 + 12345 & 0x7fffffff)); x=$x$n; done; i=0; \
             while [ $i -lt {count} ]; do echo \"$i$x\"; i=$((i + 1)); done > $out",
            chunk = LARGE_CHUNK,
            count = bytes.div_ceil(LARGE_CHUNK)
        ))
    }

    /// Adds a dependency on another derivation of the scene. Its output path is in `$dependencies`
    /// and in a variable of its name.
    pub fn uses(mut self, derivation: &str) -> Self {
        self.uses.push(derivation.to_owned());
        self
    }

    /// Replaces the output `out` by outputs with these names. The script has their paths in
    /// variables of these names.
    pub fn outputs(mut self, names: &[&str]) -> Self {
        self.outputs = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Sets `requiredSystemFeatures`.
    pub fn requires(self, features: &[&str]) -> Self {
        let list: Vec<String> = features.iter().map(|feature| nix_string(feature)).collect();
        self.attribute("requiredSystemFeatures", &format!("[ {} ]", list.join(" ")))
    }

    /// Sets an attribute of the derivation to a value in the Nix language.
    pub fn attribute(mut self, name: &str, value: &str) -> Self {
        self.attributes.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes `"name" = derivation { ... };` for a set called `self`.
    pub(super) fn to_nix(&self, name: &str) -> String {
        let mut text = format!(
            "  {quoted} = derivation {{\n    name = {quoted};\n    builder = \"/bin/sh\";\n    args = [ \"-c\" {script} ];\n",
            quoted = nix_string(name),
            script = nix_string(&self.text),
        );
        let mut attributes = vec![
            ("outputs".to_owned(), list(&self.outputs, "")),
            ("dependencies".to_owned(), list(&self.uses, "self.")),
        ];
        attributes.extend(
            self.uses.iter().map(|used| (variable(used), format!("self.{}", nix_string(used)))),
        );
        if !self.attributes.iter().any(|(name, _)| name == "system") {
            attributes.push(("system".into(), "builtins.currentSystem".into()));
        }
        attributes.extend(self.attributes.iter().cloned());
        for (name, value) in attributes {
            writeln!(text, "    {name} = {value};").unwrap();
        }
        text + "  };\n"
    }
}

/// The length of a line of [`Script::large`]: long enough that the shell needs few iterations.
const LARGE_CHUNK: usize = 16 << 10;

fn list(items: &[String], prefix: &str) -> String {
    let items: Vec<String> =
        items.iter().map(|item| format!("{prefix}{}", nix_string(item))).collect();
    format!("[ {} ]", items.join(" "))
}

/// Returns the name of the shell variable for a derivation.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// Returns a string literal of the Nix language.
pub fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}
