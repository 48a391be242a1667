//! Large paths: the comparison of two trees by the diff hook, and the upload of one large path.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::from_nix::Nix;
use super::table::{Figures, Of, Table, WARM_UP, time};
use super::{HASH, Place, THIN};

/// Files of each tree.
const FILES: usize = 20_000;
/// Files in one directory of a tree.
const FILES_A_DIRECTORY: usize = 100;
/// Bytes of a large file.
const LARGE: usize = 512 << 20;
/// Against `diff -rq`.
const AIM_TREES: f64 = 1.0;
/// Against `cmp`.
const AIM_LARGE: f64 = 0.75;
/// Against `nix copy`.
const AIM_UPLOAD: f64 = 0.75;

/// The large path as the output of a derivation: `hookrun sync` needs one.
const LARGE_PATH: &str = r#"{ file }: derivation {
  name = "large"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "/bin/cp ${file} $out" ];
}
"#;

/// Rows about the diff hook; the trees are on disk, and in the page cache.
pub(super) fn differences(
    table: &mut Table,
    program: &Path,
    parent: &Path,
    runs: usize,
) -> Result<()> {
    let place = Place::make(parent, "trees", THIN)?;
    let store = place.directory.join("store");
    let path = |name: &str| store.join(format!("{HASH}-{name}"));
    let (old, new) = (path("tree"), path("tree.check"));
    for tree in [&old, &new] {
        for number in 0..FILES {
            let directory = tree.join((number / FILES_A_DIRECTORY).to_string());
            if number % FILES_A_DIRECTORY == 0 {
                std::fs::create_dir_all(&directory)?;
            }
            std::fs::write(directory.join(number.to_string()), number.to_string().repeat(100))?;
        }
    }
    std::fs::write(new.join("0/0"), "another")?;
    let hook = |old: &Path, new: &Path| {
        let mut command = place.hookrun(program, "hook");
        command.arg("diff").args([old, new]);
        command.arg(path("bench.drv")).arg(place.directory.join("build"));
        command
    };
    // A difference is exit code 1 for diff and cmp.
    let shell = |line: String| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{line} >/dev/null; test $? = 1")]);
        command
    };
    table.compare(
        runs,
        ("diff -rq", &|| shell(format!("diff -rq {} {}", old.display(), new.display()))),
        &[(("diff hook, 20,000 files", &|| hook(&old, &new)), Some(AIM_TREES))],
    )?;
    let (old, new) = (path("large"), path("large.check"));
    noise(&mut File::create(&old)?, LARGE)?;
    std::fs::copy(&old, &new)?;
    // Only the last bytes differ, so both are read completely.
    for (file, last) in [(&old, b"a"), (&new, b"b")] {
        File::options().append(true).open(file)?.write_all(last)?;
    }
    table.compare(
        runs,
        ("cmp", &|| shell(format!("cmp -s {} {}", old.display(), new.display()))),
        &[(("diff hook, 2 files of 512 MiB", &|| hook(&old, &new)), Some(AIM_LARGE))],
    )
}

/// Rows about the upload of one large path to a directory, against this machine's `nix copy`.
pub(super) fn upload(table: &mut Table, program: &Path, parent: &Path, runs: usize) -> Result<()> {
    let nix = Nix::make(parent, "upload")?;
    let file = nix.directory.join("large");
    noise(&mut File::create(&file)?, LARGE)?;
    let large = nix.directory.join("large.nix");
    std::fs::write(&large, LARGE_PATH)?;
    let mut build = nix.command("nix-build");
    build.arg(&large).args(["--no-out-link", "--argstr", "file"]).arg(&file);
    let built = build.output()?;
    let path = String::from_utf8(built.stdout)?.trim().to_owned();
    let (ours, theirs) = (nix.directory.join("cache"), nix.directory.join("copied"));
    std::fs::create_dir_all(&ours)?;
    std::fs::write(
        nix.directory.join("hookrun.toml"),
        format!(
            "{THIN}[plugins.cache]\nsource = \"bundled:s3-upload\"\nhooks = [\"post-build\"]\n\
             config = {{ bucket = \"cache\", compression = \"zstd\", allow-unsigned = true }}\n\
             grant = {{ nix-store = \"closure\", object-store = [\"cache\"] }}\n\
             [object-stores.cache]\nurl = \"file://{}\"\n",
            ours.display()
        ),
    )?;
    let hookrun = |words: &[&str]| {
        let mut command = nix.command(&program.display().to_string());
        command.args(words);
        command
    };
    time("hookrun compile", &mut hookrun(&["compile"]))?;
    let mut times = [Vec::new(), Vec::new()];
    for run in 0..WARM_UP + runs {
        for cache in [&ours, &theirs] {
            // Remove the results of the previous run.
            let _gone = std::fs::remove_dir_all(cache);
            std::fs::create_dir_all(cache)?;
        }
        let _gone = std::fs::remove_dir_all(nix.directory.join("state"));
        time("hookrun compile", &mut hookrun(&["compile"]))?;
        time("hookrun sync", &mut hookrun(&["sync", &path]))?;
        let our = time("hookrun drain", &mut hookrun(&["drain"]))?;
        let mut copy = nix.command("nix");
        copy.args(["--extra-experimental-features", "nix-command", "copy", "--to"])
            .arg(format!("file://{}?compression=zstd", theirs.display()))
            .arg(&path);
        let their = time("nix copy", &mut copy)?;
        if run >= WARM_UP {
            times.iter_mut().zip([our, their]).for_each(|(times, time)| times.push(time));
        }
    }
    let [our, their] = times.map(Figures::of);
    table.add(
        Of::Median,
        ("upload of 512 MiB to file://", &our),
        ("nix copy with zstd", &their),
        Some(AIM_UPLOAD),
    );
    Ok(())
}

/// Writes bytes that compress by about a half: each second block is zero.
fn noise(file: &mut File, size: usize) -> Result<()> {
    const BLOCK: usize = 64 << 10;
    let mut random = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    let (mut block, zeros) = (vec![0; BLOCK], vec![0; BLOCK]);
    for _ in 0..size / (2 * BLOCK) {
        random.read_exact(&mut block)?;
        file.write_all(&block).context("cannot write a large file")?;
        file.write_all(&zeros).context("cannot write a large file")?;
    }
    Ok(())
}
