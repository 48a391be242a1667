//! Workers that are killed at random moments while they upload a closure with small and large
//! paths. Afterwards the cache is whole, no multipart upload is left over, and no object was ever
//! replaced by other bytes.
//!
//! `cargo xtask crash --cache` runs the long form.

use std::time::Duration;

use hookrun_tests::lab::s3::{S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml};

use super::check_cache;

/// The longest time after which a worker is killed. It starts and uploads within this time.
const WORKER_LIFE: Duration = Duration::from_millis(2500);

/// The paths of a closure.
struct Load {
    small: usize,
    /// Sizes in MiB.
    large: Vec<usize>,
    kills: usize,
}

#[test]
fn a_cache_is_whole_after_workers_were_killed() {
    kill(&Load { small: 12, large: vec![24], kills: 5 }, fastrand::u64(..));
}

#[test]
#[ignore = "takes minutes: `cargo xtask crash --cache` runs it"]
fn a_cache_is_whole_after_a_long_run_of_kills() {
    let text = |name: &str| std::env::var(name).ok();
    let number = |name: &str, default| text(name).map_or(default, |text| text.parse().unwrap());
    let large = text("HOOKRUN_CRASH_LARGE").unwrap_or_else(|| "256,256,256,2048".to_owned());
    let large = large.split(',').map(|size| size.parse().unwrap()).collect();
    let small = number("HOOKRUN_CRASH_PATHS", 500);
    let kills = number("HOOKRUN_CRASH_KILLS", 100);
    let seed =
        text("HOOKRUN_CRASH_SEED").map_or_else(|| fastrand::u64(..), |text| text.parse().unwrap());
    kill(&Load { small, large, kills }, seed);
}

fn kill(load: &Load, seed: u64) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let small: Vec<String> = (0..load.small).map(|number| format!("small-{number}")).collect();
    let large: Vec<String> =
        (0..load.large.len()).map(|number| format!("large-{number}")).collect();
    let mut scene = Scene::new().signing_key("lab-1");
    for name in &small {
        scene = scene.derivation(name, Script::text(name));
    }
    for (name, size) in large.iter().zip(&load.large) {
        scene = scene.derivation(name, Script::large(size << 20));
    }
    let all = small.iter().chain(&large).map(String::as_str);
    let scene = scene.derivation("all", Script::naming(all));
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let store = server.object_store("s3://bucket/prefix", scene.dir(), SECRET_ACCESS_KEY);
    let plugin = PluginTable::uploader("lab-1").config(toml! { compression = "none" });
    let file = ConfigFile::new()
        .plugin("cache", plugin)
        .signing_key("lab-1", "keys/lab-1.secret")
        .object_store("cache", store);
    scene.set_config(&file);
    scene.build("all").expect_success();
    let mut interrupted = 0;
    for _ in 0..load.kills {
        scene.hookrun(&["retry"]);
        let mut worker = scene.hookrun_command(&["drain"]).spawn().unwrap();
        // A random moment, and no synchronisation.
        std::thread::sleep(WORKER_LIFE.mul_f64(random.f64()));
        interrupted += usize::from(worker.try_wait().unwrap().is_none());
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    scene.hookrun(&["retry"]);
    scene.drain().expect_success();
    let paths = check_cache(&server.bucket("bucket").join("prefix"));
    assert_eq!(paths, load.small + load.large.len() + 1, "all paths are in the cache");
    assert_eq!(server.open_uploads(), Vec::<String>::new());
    let records = std::fs::read_dir(scene.dirs().uploads()).unwrap().count();
    assert_eq!(records, 0, "records of uploads");
    let objects = server.expect_written_once();
    let writes = server.writes().len();
    println!(
        "{} kills, {interrupted} of them of a worker at work; {paths} paths, {objects} objects, {writes} writes",
        load.kills
    );
}
