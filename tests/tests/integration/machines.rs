//! Compares how hookrun and the build hook of the installed Nix read the same generated machines
//! files. When no machine fits, the hook of Nix prints all machines with their systems, jobs and
//! features, and their URIs at the verbosity "debug".

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use hookrun_nix::installed::{identify, in_path};
use hookrun_nix::{machines, wire};
use hookrun_tests::lab::{Ran, minor_version};

/// The number of generated files. Each takes 35 ms.
const TEXTS: u64 = 150;
const THIS_SYSTEM: &str = "x86_64-linux";
/// Nix's `lvlDebug`.
const DEBUG: &str = "6";
/// Nix shows each value of a message between these.
const VALUE: (&str, &str) = ("\u{1b}[35;1m", "\u{1b}[0m");

/// The values of a machine that can be compared: URI, systems, jobs, supported and mandatory
/// features.
type Read = (String, BTreeSet<String>, u32, BTreeSet<String>, BTreeSet<String>);

/// Pseudorandom numbers that are the same in each run (Knuth's linear congruential generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// Returns a text of a few entries that contains syntax with special rules.
fn text(dice: &mut Dice, directory: &Path) -> String {
    let columns: [&[&str]; 8] = [
        &[
            "m",
            "u@m",
            "ssh://m",
            "ssh-ng://m?a=b",
            "/srv/b",
            "local?root=/b",
            "auto",
            "?root=/c",
            "localhost",
            "a/b",
            "\"m\"",
            "'m'",
        ],
        &["-", "x86_64-linux", "i686-linux,x86_64-linux", ",", "a,,b", "builtin"],
        &["-", "/root/key", "-x"],
        &["-", "0", "4", "+4", "007", "4", "9", "4x"],
        &["-", "0", "1", "2", "+3", "2"],
        &["-", "kvm", "b,a,b", ",-", "-,"],
        &["-", "gpu", ","],
        &["-", "AAAA", "AAA=", "AAA='", "AA==junk", "A", "AAAA", "AAA=", "!"],
    ];
    let separators = [
        "\n",
        "\n",
        ";",
        " ; ",
        "\n\n",
        " # x\n",
        "#x;",
        " # x ; y\n",
        "\n # z\n",
        "\r\n",
        "\n;\n",
        "\n#;#\n",
    ];
    let includes =
        ["@DIR/more", "@DIR/more ", " @DIR/more", "@ DIR/more", "@DIR/none", "@DIR/more # x"];
    let mut text = String::new();
    for _ in 0..=dice.below(4) {
        text.push_str(dice.one(&["", "", "", " ", "\t"]));
        if dice.below(6) == 0 {
            let include = dice.one(&includes);
            text.push_str(&include.replace("DIR", &directory.display().to_string()));
        } else {
            let count = dice.below(columns.len()) + 1;
            let words: Vec<&str> =
                columns.iter().take(count).map(|column| dice.one(column)).collect();
            text.push_str(&words.join(dice.one(&[" ", " ", "  ", "\t"])));
        }
        text.push_str(dice.one(&separators));
    }
    text
}

/// Returns the machines that the hook of Nix reads, or `None` if it fails.
fn read_by_nix(nix: &Path, state: &Path, builders: &str) -> Option<Vec<Read>> {
    let mut words = Vec::new();
    let settings =
        [("builders", builders), ("system", THIS_SYSTEM), ("max-jobs", "0"), ("store", "dummy://")];
    for (name, value) in settings {
        wire::write_u64(&mut words, 1).unwrap();
        wire::write_bytes(&mut words, name.as_bytes()).unwrap();
        wire::write_bytes(&mut words, value.as_bytes()).unwrap();
    }
    wire::write_u64(&mut words, 0).unwrap();
    wire::write_bytes(&mut words, b"try").unwrap();
    wire::write_u64(&mut words, 0).unwrap();
    wire::write_bytes(&mut words, b"no-such-system").unwrap();
    wire::write_bytes(&mut words, b"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv").unwrap();
    wire::write_list::<&str>(&mut words, &[]).unwrap();
    let mut hook = Command::new(nix)
        .arg0("build-remote")
        .arg(DEBUG)
        .env("NIX_STATE_DIR", state)
        .env("NIX_CONF_DIR", state)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    hook.stdin.take().unwrap().write_all(&words).unwrap();
    let said = String::from_utf8(hook.wait_with_output().unwrap().stderr).unwrap();
    if said.lines().any(|line| line == "# decline-permanently") {
        return Some(Vec::new());
    }
    if !said.lines().any(|line| line == "# decline") {
        assert!(said.contains("error:"), "neither an answer nor an error: {said}");
        return None;
    }
    let messages = said.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line.strip_prefix("@nix ")?).unwrap();
        Some(message["msg"].as_str()?.to_owned())
    });
    let (mut uris, mut rest) = (Vec::new(), Vec::new());
    for message in messages {
        if let Some(uri) = message.strip_prefix("considering building on remote machine '") {
            let plain = uri.replace(VALUE.0, "").replace(VALUE.1, "");
            uris.push(plain.strip_suffix('\'').unwrap().to_owned());
        }
        if let Some((_, table)) = message.split_once("mandatoryFeatures)") {
            let lines = table.lines().filter(|line| !line.is_empty());
            rest = lines.map(values).collect();
        }
    }
    assert_eq!(uris.len(), rest.len(), "{said}");
    let set =
        |text: &str| text.split(", ").filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let machine = |(uri, values): (String, Vec<String>)| {
        (uri, set(&values[0]), values[1].parse().unwrap(), set(&values[2]), set(&values[3]))
    };
    Some(uris.into_iter().zip(rest).map(machine).collect())
}

/// Returns the values in a line of a message.
fn values(line: &str) -> Vec<String> {
    line.split(VALUE.0).skip(1).map(|part| part.split(VALUE.1).next().unwrap().to_owned()).collect()
}

#[test]
fn hookrun_and_the_stock_hook_read_the_same_machines() {
    let minor = minor_version();
    let nix = in_path("nix").unwrap();
    let version = identify(Ran::of(Command::new(&nix).arg("--version")).stdout.trim());
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(directory.path().join("more"), "n1 # ; n2\nn3 - - 2\n").unwrap();
    let (mut compared, mut refused) = (0, 0);
    for seed in 0..TEXTS {
        let text = text(&mut Dice(seed), directory.path());
        let found = machines::parse_as(text.as_bytes(), THIS_SYSTEM, || version);
        let Some(by_nix) = read_by_nix(&nix, &state, &text) else {
            refused += 1;
            continue;
        };
        compared += 1;
        // From 2.23 on the hook shows a URI in another form.
        let shown = |uri: &str| if minor < 23 { uri.to_owned() } else { String::new() };
        let set = |words: &[String]| words.iter().cloned().collect();
        let by_hookrun: Vec<Read> = found
            .machines
            .iter()
            .map(|machine| {
                (
                    shown(&machine.uri),
                    set(&machine.systems),
                    machine.max_jobs,
                    set(&machine.supported_features),
                    set(&machine.mandatory_features),
                )
            })
            .collect();
        let by_nix: Vec<Read> =
            by_nix.into_iter().map(|(uri, a, b, c, d)| (shown(&uri), a, b, c, d)).collect();
        assert_eq!(by_hookrun, by_nix, "text {seed}: {text:?}: {:?}", found.warnings);
    }
    assert!(compared > 50 && refused > 10, "{compared} compared, {refused} refused by Nix");
}
