use std::collections::BTreeSet;

use rusqlite::params;

use super::*;

/// Creates a database as Nix's `libstore/schema.sql` (2.8) does, without Nix.
fn database(dir: &Path) -> Connection {
    let connection = Connection::open(dir.join("db.sqlite")).unwrap();
    connection
        .execute_batch(
            "pragma journal_mode = wal;
             create table ValidPaths (id integer primary key autoincrement not null, path text unique not null,
                hash text not null, registrationTime integer not null, deriver text, narSize integer, ultimate integer,
                sigs text, ca text);
             create table Refs (referrer integer not null, reference integer not null, primary key (referrer, reference));
             create table DerivationOutputs (drv integer not null, id text not null, path text not null,
                primary key (drv, id));",
        )
        .unwrap();
    connection
}

fn add(connection: &Connection, id: i64, path: &str, references: &[i64]) {
    connection
        .execute(
            "insert into ValidPaths values (?1, ?2, 'sha256:9276fd53b49dcbf6168f8823aef1487af2ee4e2304b7ee6412dba79982b90a86',
             1795375507, ?3, 120, 1, 'a-1:AAAA b-1:BBBB', null)",
            params![id, path, "/s/0zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-b-1.0.drv"],
        )
        .unwrap();
    for reference in references {
        connection.execute("insert into Refs values (?1, ?2)", params![id, reference]).unwrap();
    }
}

#[test]
fn path_infos_and_closures_are_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let connection = database(dir.path());
    // d -> b -> a, d -> c -> a, and b refers to itself.
    add(&connection, 1, "/s/d", &[2, 3]);
    add(&connection, 2, "/s/b", &[2, 4]);
    add(&connection, 3, "/s/c", &[4]);
    add(&connection, 4, "/s/a", &[]);
    let database = Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap();
    let closure = database.closure(&["/s/d".into(), "/s/gone".into(), "/s/b".into()]).unwrap();
    assert_eq!(closure, ["/s/a", "/s/b", "/s/c", "/s/d"]);
    let infos = database.path_infos(&["/s/gone".into(), "/s/b".into()]).unwrap();
    assert_eq!(infos[0], None);
    let info = infos[1].clone().unwrap();
    assert_eq!(info.nar_hash, "sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj");
    assert_eq!(info.references, ["/s/a", "/s/b"]);
    assert_eq!(info.signatures, ["a-1:AAAA", "b-1:BBBB"]);
    assert!(info.ultimate);
}

#[test]
fn uncheckpointed_changes_of_a_writer_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let connection = database(dir.path());
    add(&connection, 1, "/s/a", &[]);
    let database = Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap();
    add(&connection, 2, "/s/b", &[]);
    assert!(database.path_infos(&["/s/b".into()]).unwrap()[0].is_some());
}

#[test]
fn unusual_directory_names_and_missing_databases_are_handled() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("a?b%41#c");
    std::fs::create_dir(&odd).unwrap();
    drop(database(&odd));
    assert!(Database::open_file(&odd.join("db.sqlite"), BUSY_TIMEOUT).is_ok());
    let missing =
        Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap_err().to_string();
    assert!(missing.starts_with("no Nix database at "), "{missing}");
}

#[test]
fn a_row_with_another_hash_is_an_error_not_a_guess() {
    let dir = tempfile::tempdir().unwrap();
    let connection = database(dir.path());
    add(&connection, 1, "/s/a", &[]);
    connection
        .execute("update ValidPaths set hash = 'md5:900150983cd24fb0d6963f7d28e17f72'", [])
        .unwrap();
    let database = Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap();
    let error = database.path_infos(&["/s/a".into()]).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"the entry of `/s/a` in Nix's database is not valid: the hash is `md5:900150983cd24fb0d6963f7d28e17f72`; check it with `nix-store --verify`");
}

#[test]
fn outputs_come_from_the_text_then_the_database_then_the_deriver() {
    let dir = tempfile::tempdir().unwrap();
    let connection = database(dir.path());
    let drv = "/s/0zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-b-1.0.drv";
    let dev = "/s/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev";
    add(&connection, 1, drv, &[]);
    add(&connection, 2, dev, &[]);
    let out = "/s/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0";
    connection.execute("insert into DerivationOutputs values (1, 'out', ?1)", [out]).unwrap();
    let text =
        br#"Derive([("dev","","r:sha256",""),("lib","","r:sha256",""),("out","","r:sha256","")],[],[],"x","/bin/sh",[],[])"#;
    let derivation = Derivation::parse(Path::new(drv), text).unwrap();
    let database = Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap();
    assert_eq!(
        database.outputs(&derivation).unwrap(),
        [("dev".to_owned(), dev.to_owned()), ("out".to_owned(), out.to_owned())]
    );
}

/// Compares the results with those of Nix for its own store.
#[test]
fn results_equal_those_of_nix_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let dirs = NixDirs::new(root.join("store"), root.join("var"), root.join("etc"));
    std::fs::create_dir_all(&dirs.conf).unwrap();
    std::fs::write(
        dirs.conf.join("nix.conf"),
        "sandbox = false\nsubstituters =\nbuild-users-group =\n",
    )
    .unwrap();
    let nix = |args: &[&str]| {
        let output = std::process::Command::new("nix-store")
            .args(args)
            .env("NIX_STORE_DIR", &dirs.store)
            .env("NIX_STATE_DIR", &dirs.state)
            .env("NIX_LOG_DIR", root.join("log"))
            .env("NIX_CONF_DIR", &dirs.conf)
            .env("NIX_USER_CONF_FILES", "/dev/null")
            .env("HOME", &root)
            .output();
        let output = output.expect(
            "nix-store can be started; on Debian install it with `apt-get install nix-bin`",
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    std::fs::write(root.join("file"), "content\n").unwrap();
    let path = nix(&["--add", &root.join("file").display().to_string()]);
    let info = Database::open(&dirs)
        .unwrap()
        .path_infos(std::slice::from_ref(&path))
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(info.nar_hash, nix(&["-q", "--hash", &path]));
    assert_eq!(info.nar_size.to_string(), nix(&["-q", "--size", &path]));
    assert!(info.ca.is_some_and(|ca| ca.starts_with("fixed:r:sha256:")));
}

proptest::proptest! {
    // Each case is a database on disk.
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]

    /// Checks for any graph that each path comes once, and each reference before its referrer if
    /// the graph has no cycle.
    #[test]
    fn a_closure_has_each_path_once_and_references_first(edges in proptest::collection::vec((0_i64..12, 0_i64..12), 0..40), root in 0_i64..12) {
        let name = |n: i64| format!("/s/{n:02}");
        let dir = tempfile::tempdir().unwrap();
        let connection = database(dir.path());
        let mut references_of = BTreeMap::new();
        for n in 0..12 {
            // References only from larger to smaller numbers, or to itself, so that there is no
            // cycle.
            let references: BTreeSet<i64> = edges
                .iter()
                .filter(|(from, to)| *from == n && to <= from)
                .map(|(_, to)| *to + 1)
                .collect();
            let references: Vec<i64> = references.into_iter().collect();
            add(&connection, n + 1, &name(n), &references);
            let names: Vec<String> = references.iter().map(|id| name(id - 1)).collect();
            references_of.insert(name(n), names);
        }
        let found = Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap();
        let mut seen = HashSet::new();
        for path in found.closure(&[name(root)]).unwrap() {
            for reference in &references_of[&path] {
                proptest::prop_assert!(*reference == path || seen.contains(reference));
            }
            proptest::prop_assert!(seen.insert(path));
        }
        proptest::prop_assert!(seen.contains(&name(root)));
    }
}

#[test]
fn the_depth_of_dependents_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let connection = database(dir.path());
    // a <- b <- d, a <- c <- d, d <- e: b, c and d are not built yet, e is.
    for (id, name, references) in
        [(1, "a", &[][..]), (2, "b", &[1]), (3, "c", &[1]), (4, "d", &[2, 3]), (5, "e", &[4])]
    {
        add(&connection, id, &format!("/s/{name}.drv"), references);
        connection
            .execute(
                "insert into DerivationOutputs values (?1, 'out', ?2)",
                params![id, format!("/s/{name}")],
            )
            .unwrap();
    }
    add(&connection, 6, "/s/e", &[]);
    let database = Database::open_file(&dir.path().join("db.sqlite"), BUSY_TIMEOUT).unwrap();
    let depth = |path: &str, most| database.dependents_depth(path, most).unwrap();
    assert_eq!(depth("/s/a.drv", 100), 2);
    assert_eq!(depth("/s/b.drv", 100), 1);
    assert_eq!(depth("/s/d.drv", 100), 0);
    assert_eq!(depth("/s/gone.drv", 100), 0);
    assert_eq!(depth("/s/a.drv", 1), 1, "the search ends at the limit");
}
