//! Guests that reach for what is not theirs: paths, keys, addresses, signatures, the machine
//! itself; and words that attack who reads them.

use super::{Hook, Row, act};

pub(super) fn rows() -> Vec<Row> {
    [paths(), signing(), objects(), state(), mail(), outside(), words()].concat()
}

/// A store path that is in no scope.
const OTHER: &str = "{store}/00bgd045z0d4icpbc2yyz4gx48ak44la-other";

fn paths() -> Vec<Row> {
    let read = |name: &str, path: &str, relative: &str| {
        act(name, &format!("act = \"read-file\", path = \"{path}\", relative = \"{relative}\""))
    };
    let list = |name: &str, path: &str, relative: &str| {
        act(
            name,
            &format!("act = \"list-directory\", path = \"{path}\", relative = \"{relative}\""),
        )
    };
    let of = |name: &str, what: &str, path: &str| {
        act(name, &format!("act = \"{what}\", path = \"{path}\""))
    };
    vec![
        read("read-parent", "{out}", "../../etc/passwd")
            .ends("permanent", "is not a path below a store path"),
        read("read-parent-inside", "{out}", "dir/../../x")
            .ends("permanent", "is not a path below a store path"),
        read("read-parent-diff", "{out}", "../x")
            .hook(Hook::Diff)
            .ends("permanent", "is not a path below a store path"),
        read("read-absolute", "{out}", "/etc/passwd")
            .ends("permanent", "is not a path below a store path"),
        read("read-symlink", "{out}", "escape").ends("permanent", "symlink"),
        read("read-through-symlink", "{out}", "etc/passwd").ends("permanent", "symlink"),
        list("list-symlink", "{out}", "etc").ends("permanent", "symlink"),
        read("read-nul", "{out}", "a\\u0000/etc/passwd")
            .ends("permanent", "is not a path below a store path"),
        read("read-directory", "{out}", "").ends("permanent", "is not a regular file"),
        read("read-etc", "/etc", "passwd").ends("permanent", "is not a store path"),
        read("read-store-parent", "{store}/..", "etc/passwd")
            .ends("permanent", "is not a store path"),
        read("read-out-parent", "{out}/..", "x").ends("permanent", "is not a store path"),
        list("list-store", "{store}", "").ends("permanent", "is not a store path"),
        read("read-other-path", OTHER, "").ends("permanent", "may not read"),
        list("list-neighbour", "{out}x", "").ends("permanent", "may not read"),
        of("info-of-other-path", "path-info", OTHER).ends("permanent", "may not read"),
        of("closure-beyond-the-scope", "closure", "{out}").ends("permanent", "may not ask what"),
        of("derivation-of-other-path", "derivation", &format!("{OTHER}.drv"))
            .ends("permanent", "may not read"),
        of("derivation-that-is-none", "derivation", "{out}").ends("permanent", ""),
        of("info-of-nul", "path-info", "{out}\\u0000").ends("permanent", "is not a store path"),
        act("path-not-utf8", r#"act = "not-utf8""#).ends("trapped", "utf-8"),
    ]
}

fn signing() -> Vec<Row> {
    let sign = |name: &str, key: &str, path: &str| {
        act(name, &format!("act = \"sign\", key = \"{key}\", path = \"{path}\""))
    };
    vec![
        sign("sign-other-path", "own-1", OTHER).ends("permanent", "may not read"),
        sign("sign-no-path", "own-1", "1;{out};sha256:0000;1;")
            .ends("permanent", "is not a store path"),
        sign("sign-by-ungranted-key", "neighbour-1", "{out}")
            .ends("permanent", "has no grant for signing `neighbour-1`"),
        sign("sign-by-key-file", "../keys/own-1.secret", "{out}")
            .ends("permanent", "has no grant for signing"),
    ]
}

fn objects() -> Vec<Row> {
    let put = |name: &str, store: &str, key: &str| {
        act(name, &format!("act = \"put\", store = \"{store}\", key = \"{key}\""))
    };
    vec![
        put("put-parent", "own", "../neighbour/nix-cache-info").ends("permanent", "is not a valid key"),
        put("put-parent-inside", "own", "a/../../b").ends("permanent", "is not a valid key"),
        put("put-absolute", "own", "/etc/cron.d/hostile").ends("permanent", "is not a valid key"),
        put("put-empty", "own", "").ends("permanent", "is not a valid key"),
        put("put-dot", "own", ".").ends("permanent", "is not a valid key"),
        put("put-nul", "own", "a\\u0000b").ends("permanent", "is not a valid key"),
        put("put-line-break", "own", "a\\r\\nb").ends("permanent", "is not a valid key"),
        act("put-nars-parent", r#"act = "put-nars", store = "own", directory = "../neighbour", path = "{out}""#)
            .ends("permanent", "is not a valid key"),
        act("put-nars-out-of-scope", r#"act = "put-nars", store = "own", directory = "nar", path = "{store}/00bgd045z0d4icpbc2yyz4gx48ak44la-not-in-scope""#)
            .ends("permanent", "may not read"),
        act("put-nars-to-neighbour", r#"act = "put-nars", store = "neighbour", directory = "nar", path = "{out}""#)
            .ends("permanent", "has no grant for object-store `neighbour`"),
        act("put-long-key", r#"act = "put-long-key", store = "own""#).ends("permanent", "bytes"),
        act("put-content-type", r#"act = "put-content-type", store = "own""#)
            .ends("permanent", "is not a content type"),
        put("put-to-neighbour", "neighbour", "key")
            .ends("permanent", "has no grant for object-store `neighbour`"),
        put("put-to-neighbour-by-path", "../neighbour", "key")
            .ends("permanent", "has no grant for object-store"),
        act("get-of-neighbour", r#"act = "get", store = "neighbour", key = "nix-cache-info""#)
            .ends("permanent", "has no grant for object-store `neighbour`"),
        act("get-parent", r#"act = "get", store = "own", key = "../../hookrun.toml""#)
            .ends("permanent", "is not a valid key"),
        act("list-of-neighbour", r#"act = "list", store = "neighbour", prefix = """#)
            .ends("permanent", "has no grant for object-store `neighbour`"),
        act("list-parent", r#"act = "list", store = "own", prefix = "../""#)
            .ends("permanent", "is not a valid key"),
    ]
}

fn state() -> Vec<Row> {
    let key = |name: &str, key: &str| act(name, &format!("act = \"state-key\", key = \"{key}\""));
    vec![
        key("state-parent", "../neighbour.sqlite").ends("done", "a key like any other"),
        key("state-sql", "x'; DROP TABLE pairs; --").ends("done", "a key like any other"),
        key("state-nul", "a\\u0000b").ends("done", "a key like any other"),
        key("state-empty", "").ends("permanent", "the key is empty"),
        act("state-long-key", r#"act = "state-long-key""#).ends("permanent", "`state-key-bytes`"),
    ]
}

fn mail() -> Vec<Row> {
    let mail = |name: &str, more: &str| act(name, &format!("act = \"mail\", {more}"));
    vec![
        mail("mail-to-stranger", r#"recipient = "mallory@example.net""#)
            .ends("permanent", "may not write to"),
        mail("mail-to-line-break", r#"recipient = "ann@example.org\r\nBcc: mallory@example.net""#)
            .ends("permanent", "is not a mail address"),
        mail("mail-to-two", r#"recipient = "ann@example.org, mallory@example.net""#)
            .ends("permanent", "is not a mail address"),
        mail("mail-to-option", r#"recipient = "-oQ/tmp@example.org""#)
            .ends("permanent", "is not a mail address"),
        mail(
            "mail-subject-line-break",
            r#"recipient = "ann@example.org", subject = "x\r\nBcc: mallory@example.net""#,
        )
        .ends("permanent", "holds the character"),
        mail(
            "mail-subject-line-separator",
            r#"recipient = "ann@example.org", subject = "x\u2028Bcc: mallory@example.net""#,
        )
        .ends("permanent", "holds the character"),
        mail(
            "mail-header-bcc",
            r#"recipient = "ann@example.org", header = ["Bcc", "mallory@example.net"]"#,
        )
        .ends("permanent", "is not a header that a plugin may set"),
        mail(
            "mail-header-name",
            r#"recipient = "ann@example.org", header = ["X-A: b\r\nBcc", "mallory@example.net"]"#,
        )
        .ends("permanent", "is not a header that a plugin may set"),
        mail(
            "mail-header-value",
            r#"recipient = "ann@example.org", header = ["X-A", "b\r\nBcc: mallory@example.net"]"#,
        )
        .ends("permanent", "holds the character"),
        mail("mail-by-ungranted-transport", r#"recipient = "ann@example.org", transport = "team""#)
            .ends("permanent", "has no grant for mail `team`"),
    ]
}

fn outside() -> Vec<Row> {
    let refused = |name: &str, config: &str| act(name, config).ends("permanent", "refused: ");
    vec![
        refused("wasi-read", r#"act = "wasi-read", path = "/etc/passwd""#),
        refused("wasi-read-parent", r#"act = "wasi-read", path = "../../../../etc/passwd""#),
        refused("wasi-write", r#"act = "wasi-write", path = "/tmp/hookrun-hostile""#),
        refused("wasi-list", r#"act = "wasi-list", path = ".""#),
        refused("wasi-tcp", r#"act = "tcp", address = "127.0.0.1:22""#),
        refused("wasi-tcp-metadata", r#"act = "tcp", address = "169.254.169.254:80""#),
        refused("wasi-tcp-ipv6", r#"act = "tcp", address = "[::ffff:127.0.0.1]:22""#),
        refused("wasi-listen", r#"act = "tcp-listen""#),
        refused("wasi-udp", r#"act = "udp", address = "127.0.0.1:53""#),
        refused("wasi-lookup", r#"act = "lookup", name = "localhost""#),
        refused("wasi-lookup-out", r#"act = "lookup", name = "secret.exfiltrated.example.org""#),
        act("wasi-environment", r#"act = "environment""#).ends("done", "no environment"),
        act("wasi-arguments", r#"act = "arguments""#).ends("done", "no arguments"),
        act("wasi-stdin", r#"act = "stdin""#).ends("done", "standard input is empty"),
        act("wasi-stdin-diff", r#"act = "stdin""#)
            .hook(Hook::Diff)
            .ends("done", "standard input is empty"),
    ]
}

fn words() -> Vec<Row> {
    vec![
        act("words-fail-escapes", r#"act = "fail-escapes""#).ends("permanent", "forged"),
        act("words-fail-escapes-diff", r#"act = "fail-escapes""#)
            .hook(Hook::Diff)
            .ends("permanent", "forged"),
        act("words-fail-long", r#"act = "fail-long""#).ends("permanent", "long long"),
        act("words-fail-centuries", r#"act = "fail-centuries""#)
            .retry("attempts = 5")
            .ends("transient", "later"),
        act("words-escapes", r#"act = "escapes""#).ends("done", "forged"),
    ]
}
