//! `hookrun test --update`: writes what a scenario did into its file as expectations. Only the
//! tables `[step.expect]` change, so that comments and all other keys stay.

use toml::{Table, Value};

use super::play::Played;
use super::scenario::{Scenario, ScenarioFile};
use hookrun_nix::event::HookKind;

/// Returns the text of the file with the expectations that `played` meets.
///
/// # Errors
/// The file is written in a form that cannot be changed line by line. One line.
pub fn updated(file: &ScenarioFile, played: &Played) -> Result<String, String> {
    let expectations: Vec<Table> = file
        .scenario
        .steps
        .iter()
        .zip(&played.steps)
        .map(|(step, played)| {
            let is_policy = played.hook == HookKind::BuilderSelection;
            let expect = played.observed.as_expectation(is_policy, &step.expect);
            Table::try_from(expect).map_err(|error| error.to_string())
        })
        .collect::<Result<_, _>>()?;
    let text = replaced(&file.text, &expectations);
    let shown = file.path.display();
    let problem = || {
        format!(
            "{shown} cannot be updated; write each step as `[[step]]` and its expectations as `[step.expect]`"
        )
    };
    let read: Scenario = toml::from_str(&text).map_err(|_| problem())?;
    let written: Vec<Table> = read
        .steps
        .iter()
        .map(|step| Table::try_from(step.expect.clone()).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    if written == expectations { Ok(text) } else { Err(problem()) }
}

fn replaced(text: &str, expectations: &[Table]) -> String {
    let mut result = String::new();
    let mut expectations = expectations.iter();
    // The expectations of the step that is being read.
    let mut pending: Option<&Table> = None;
    let mut is_expectation = false;
    for line in text.lines() {
        let header = line.trim();
        if header.starts_with('[') {
            if header.starts_with("[[step]]") {
                write(&mut result, pending.take());
                pending = expectations.next();
            }
            is_expectation = header.starts_with("[step.expect]")
                || header.starts_with("[step.expect.")
                || header.starts_with("[[step.expect.");
        }
        if !is_expectation {
            result.push_str(line);
            result.push('\n');
        }
    }
    write(&mut result, pending);
    result
}

fn write(text: &mut String, expect: Option<&Table>) {
    let Some(expect) = expect else { return };
    let step = Table::from_iter([("expect".to_owned(), Value::Table(expect.clone()))]);
    let whole = Table::from_iter([("step".to_owned(), Value::Array(vec![Value::Table(step)]))]);
    let written = toml::to_string_pretty(&whole).unwrap_or_default();
    let end = text.trim_end().len();
    text.truncate(end);
    text.push_str("\n\n");
    text.push_str(written.trim_start_matches("[[step]]").trim_start());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_expectations_change() {
        let text = "# head\nformat = 1\n\n[[step]]\n# one\nattempt = 1\n\n[step.expect]\noutcome = \"done\"\n\n[step.expect.state]\na = \"1\"\n\n[[step]]\nattempt = 2\n";
        let expect: Table = toml::from_str("message = \"m\"\nstate = { b = \"2\" }").unwrap();
        insta::assert_snapshot!(replaced(text, &[expect.clone(), expect]), @r#"
# head
format = 1

[[step]]
# one
attempt = 1

[step.expect]
message = "m"

[step.expect.state]
b = "2"

[[step]]
attempt = 2

[step.expect]
message = "m"

[step.expect.state]
b = "2"
"#);
    }
}
