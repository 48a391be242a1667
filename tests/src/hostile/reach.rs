//! Guests that use what they have no grant for: paths, keys, addresses, signatures and the machine
//! itself; and guests whose messages attack their readers.

use toml::{Table, toml};

use super::{GuestHook, Row, act, with};

pub(super) fn rows() -> Vec<Row> {
    [paths(), signing(), objects(), state(), mail(), outside(), words()].concat()
}

/// A store path outside of every scope.
const OTHER: &str = "{store}/00bgd045z0d4icpbc2yyz4gx48ak44la-other";

fn paths() -> Vec<Row> {
    let read = |name: &str, path: &str, relative: &str| {
        act(name, toml! { act = "read-file" path = path relative = relative })
    };
    let list = |name: &str, path: &str, relative: &str| {
        act(name, toml! { act = "list-directory" path = path relative = relative })
    };
    let of = |name: &str, what: &str, path: &str| act(name, toml! { act = what path = path });
    vec![
        read("read-parent", "{out}", "../../etc/passwd")
            .ends("permanent", "is not a path below a store path"),
        read("read-parent-inside", "{out}", "dir/../../x")
            .ends("permanent", "is not a path below a store path"),
        read("read-parent-diff", "{out}", "../x")
            .hook(GuestHook::Diff)
            .ends("permanent", "is not a path below a store path"),
        read("read-absolute", "{out}", "/etc/passwd")
            .ends("permanent", "is not a path below a store path"),
        read("read-symlink", "{out}", "escape").ends("permanent", "symlink"),
        read("read-through-symlink", "{out}", "etc/passwd").ends("permanent", "symlink"),
        list("list-symlink", "{out}", "etc").ends("permanent", "symlink"),
        read("read-nul", "{out}", "a\u{0}/etc/passwd")
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
        of("closure-beyond-the-scope", "closure", "{out}")
            .ends("permanent", "may not read the closure of"),
        of("derivation-of-other-path", "derivation", &format!("{OTHER}.drv"))
            .ends("permanent", "may not read"),
        of("derivation-that-is-none", "derivation", "{out}").ends("permanent", ""),
        of("info-of-nul", "path-info", "{out}\u{0}").ends("permanent", "is not a store path"),
        act("path-not-utf8", toml! { act = "not-utf8" }).ends("trapped", "utf-8"),
    ]
}

fn signing() -> Vec<Row> {
    let sign =
        |name: &str, key: &str, path: &str| act(name, toml! { act = "sign" key = key path = path });
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
        act(name, toml! { act = "put" store = store key = key })
    };
    let push = |name: &str, store: &str, key: &str, path: &str| {
        act(name, toml! { act = "push" store = store key = key path = path })
    };
    vec![
        put("put-parent", "own", "../neighbour/nix-cache-info")
            .ends("permanent", "is not a valid key"),
        put("put-parent-inside", "own", "a/../../b").ends("permanent", "is not a valid key"),
        put("put-absolute", "own", "/etc/cron.d/hostile").ends("permanent", "is not a valid key"),
        put("put-empty", "own", "").ends("permanent", "is not a valid key"),
        put("put-dot", "own", ".").ends("permanent", "is not a valid key"),
        put("put-nul", "own", "a\u{0}b").ends("permanent", "is not a valid key"),
        put("put-line-break", "own", "a\r\nb").ends("permanent", "is not a valid key"),
        push(
            "push-out-of-scope",
            "own",
            "own-1",
            "{store}/00bgd045z0d4icpbc2yyz4gx48ak44la-not-in-scope",
        )
        .ends("permanent", "may not read"),
        push("push-to-neighbour", "neighbour", "own-1", "{out}")
            .ends("permanent", "has no grant for object-store `neighbour`"),
        push("push-signed-by-neighbour", "own", "neighbour-1", "{out}")
            .ends("permanent", "has no grant for signing `neighbour-1`"),
        act("put-long-key", toml! { act = "put-long-key" store = "own" })
            .ends("permanent", "bytes"),
        act("put-content-type", toml! { act = "put-content-type" store = "own" })
            .ends("permanent", "is not a content type"),
        put("put-to-neighbour", "neighbour", "key")
            .ends("permanent", "has no grant for object-store `neighbour`"),
        put("put-to-neighbour-by-path", "../neighbour", "key")
            .ends("permanent", "has no grant for object-store"),
        act("get-of-neighbour", toml! { act = "get" store = "neighbour" key = "nix-cache-info" })
            .ends("permanent", "has no grant for object-store `neighbour`"),
        act("get-parent", toml! { act = "get" store = "own" key = "../../hookrun.toml" })
            .ends("permanent", "is not a valid key"),
        act("list-of-neighbour", toml! { act = "list" store = "neighbour" prefix = "" })
            .ends("permanent", "has no grant for object-store `neighbour`"),
        act("list-parent", toml! { act = "list" store = "own" prefix = "../" })
            .ends("permanent", "is not a valid key"),
    ]
}

fn state() -> Vec<Row> {
    let key = |name: &str, key: &str| act(name, toml! { act = "state-key" key = key });
    vec![
        key("state-parent", "../neighbour.sqlite").ends("done", "a key like any other"),
        key("state-sql", "x'; DROP TABLE pairs; --").ends("done", "a key like any other"),
        key("state-nul", "a\u{0}b").ends("done", "a key like any other"),
        key("state-empty", "").ends("permanent", "the key is empty"),
        act("state-long-key", toml! { act = "state-long-key" })
            .ends("permanent", "`state-key-bytes`"),
    ]
}

fn mail() -> Vec<Row> {
    let mail = |name: &str, more: Table| act(name, with(toml! { act = "mail" }, more));
    vec![
        mail("mail-to-stranger", toml! { recipient = "mallory@example.net" })
            .ends("permanent", "may not write to"),
        mail("mail-to-line-break", toml! { recipient = "ann@example.org\r\nBcc: mallory@example.net" })
            .ends("permanent", "is not a mail address"),
        mail("mail-to-two", toml! { recipient = "ann@example.org, mallory@example.net" })
            .ends("permanent", "is not a mail address"),
        mail("mail-to-option", toml! { recipient = "-oQ/tmp@example.org" })
            .ends("permanent", "is not a mail address"),
        mail(
            "mail-subject-line-break",
            toml! { recipient = "ann@example.org" subject = "x\r\nBcc: mallory@example.net" },
        )
        .ends("permanent", "holds the character"),
        mail(
            "mail-subject-line-separator",
            toml! { recipient = "ann@example.org" subject = "x\u{2028}Bcc: mallory@example.net" },
        )
        .ends("permanent", "holds the character"),
        mail(
            "mail-header-bcc",
            toml! { recipient = "ann@example.org" header = ["Bcc", "mallory@example.net"] },
        )
        .ends("permanent", "is not a header that a plugin may set"),
        mail(
            "mail-header-name",
            toml! { recipient = "ann@example.org" header = ["X-A: b\r\nBcc", "mallory@example.net"] },
        )
        .ends("permanent", "is not a header that a plugin may set"),
        mail(
            "mail-header-value",
            toml! { recipient = "ann@example.org" header = ["X-A", "b\r\nBcc: mallory@example.net"] },
        )
        .ends("permanent", "holds the character"),
        mail("mail-by-ungranted-transport", toml! { recipient = "ann@example.org" transport = "team" })
            .ends("permanent", "has no grant for mail `team`"),
    ]
}

fn outside() -> Vec<Row> {
    let refused = |name: &str, config: Table| act(name, config).ends("permanent", "refused: ");
    vec![
        refused("wasi-read", toml! { act = "wasi-read" path = "/etc/passwd" }),
        refused("wasi-read-parent", toml! { act = "wasi-read" path = "../../../../etc/passwd" }),
        refused("wasi-write", toml! { act = "wasi-write" path = "/tmp/hookrun-hostile" }),
        refused("wasi-list", toml! { act = "wasi-list" path = "." }),
        refused("wasi-tcp", toml! { act = "tcp" address = "127.0.0.1:22" }),
        refused("wasi-tcp-metadata", toml! { act = "tcp" address = "169.254.169.254:80" }),
        refused("wasi-tcp-ipv6", toml! { act = "tcp" address = "[::ffff:127.0.0.1]:22" }),
        refused("wasi-listen", toml! { act = "tcp-listen" }),
        refused("wasi-udp", toml! { act = "udp" address = "127.0.0.1:53" }),
        refused("wasi-lookup", toml! { act = "lookup" name = "localhost" }),
        refused(
            "wasi-lookup-out",
            toml! { act = "lookup" name = "secret.exfiltrated.example.org" },
        ),
        act("wasi-environment", toml! { act = "environment" }).ends("done", "no environment"),
        act("wasi-arguments", toml! { act = "arguments" }).ends("done", "no arguments"),
        act("wasi-stdin", toml! { act = "stdin" }).ends("done", "standard input is empty"),
        act("wasi-stdin-diff", toml! { act = "stdin" })
            .hook(GuestHook::Diff)
            .ends("done", "standard input is empty"),
    ]
}

fn words() -> Vec<Row> {
    vec![
        act("words-fail-escapes", toml! { act = "fail-escapes" }).ends("permanent", "forged"),
        act("words-fail-escapes-diff", toml! { act = "fail-escapes" })
            .hook(GuestHook::Diff)
            .ends("permanent", "forged"),
        act("words-fail-long", toml! { act = "fail-long" }).ends("permanent", "long long"),
        act("words-fail-centuries", toml! { act = "fail-centuries" })
            .retry("attempts", 5)
            .ends("transient", "later"),
        act("words-escapes", toml! { act = "escapes" }).ends("done", "forged"),
    ]
}
