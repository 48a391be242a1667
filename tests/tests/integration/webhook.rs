//! The bundled plugin `webhook` with real builds and a real server.

use std::os::unix::fs::PermissionsExt as _;

use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml};
use hookrun_tests::web::WebServer;
use serde_json::Value;

/// A secret that only the server may receive.
const TOKEN: &str = "t0ken-of-the-chat-51c2";

/// A plugin `webhook` that may post to this address of this machine.
fn webhook(base: &str, path: &str, more: toml::Table) -> PluginTable {
    let mut config = toml! { url = (format!("{base}{path}")) };
    config.extend(more);
    PluginTable::bundled("webhook")
        .config(config)
        .grant_http(base, toml! { methods = ["POST", "PUT"] credential = "chat" })
}

fn credential(scene: &Scene, file: ConfigFile) -> ConfigFile {
    let path = scene.path("token");
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let token_file = path.display().to_string();
    file.http_credential("chat", toml! { kind = "bearer" token-file = token_file })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_and_a_difference_are_announced_to_a_server() {
    let server = WebServer::plain().await;
    let base = format!("http://127.0.0.1:{}/", server.port());
    let scene = Scene::new().derivation(
        "stamp",
        Script::new("read x < /proc/sys/kernel/random/uuid; echo made $x > $out"),
    );
    let room =
        toml! { format = "matrix" channel = "!room:example.org" template = "{name}: {files}" };
    let file = ConfigFile::new()
        .plugin("json", webhook(&base, "builds", toml::Table::new()))
        .plugin("room", webhook(&base, "", room).hooks(["diff"]));
    scene.set_config(&credential(&scene, file));
    scene.hookrun(&["check"]).expect_success();

    scene.build("stamp").expect_success();
    scene.drain().expect_success();
    let _ = scene.check("stamp");
    scene.drain().expect_success();
    scene.expect_tasks(&["stamp json done", "stamp json done", "stamp room done"]);

    let mut seen = server.seen();
    seen.sort_by_key(|request| request.method.clone());
    let [built, differs, notice] = seen.as_slice() else { panic!("{seen:#?}") };
    for request in [built, differs, notice] {
        assert_eq!(request.header("authorization"), [format!("Bearer {TOKEN}")]);
        assert_eq!(request.header("content-type"), ["application/json"]);
    }
    let body = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let (built_body, differs_body) = (body(&built.body), body(&differs.body));
    assert_eq!(built.target, "/builds");
    assert_eq!(built_body["hook"], "post-build");
    let drv_path = scene.drv_path("stamp").display().to_string();
    assert_eq!(built_body["event"]["drv_path"], drv_path);
    assert_eq!(differs_body["status"], "not reproducible");
    assert!(differs_body["text"].as_str().unwrap().starts_with("stamp (out) is not reproducible"));
    let id = differs_body["event"]["id"].as_str().unwrap();
    assert_eq!(differs.header("idempotency-key"), [format!("\"{id}\"")]);
    let target = format!("/_matrix/client/v3/rooms/!room:example.org/send/m.room.message/{id}");
    assert_eq!((notice.method.as_str(), notice.target.as_str()), ("PUT", target.as_str()));
    assert_eq!(body(&notice.body)["body"], "stamp: 1 file");

    let log = scene.hookrun(&["log", "--all", "--format", "json"]).expect_success();
    assert!(!log.stdout.contains(TOKEN), "{}", log.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_retried_and_a_refusal_becomes_a_dead_letter_with_the_fix() {
    let server = WebServer::plain().await;
    let base = format!("http://127.0.0.1:{}/", server.port());
    let scene = Scene::new().derivation("alpha", Script::text("hello"));
    let file = ConfigFile::new()
        .plugin("busy", webhook(&base, "status/503", toml::Table::new()).retry_hourly())
        .plugin("refused", webhook(&base, "status/401", toml::Table::new()));
    scene.set_config(&credential(&scene, file));
    scene.build("alpha").expect_success();
    let _ = scene.drain();
    scene.expect_tasks(&["alpha busy transient", "alpha refused permanent"]);
    let attempts = scene.attempts();
    let refused = attempts.iter().find(|attempt| attempt.plugin == "refused").unwrap();
    assert!(refused.message.contains("check the `credential`"), "{}", refused.message);
}

#[test]
fn check_reports_an_unknown_placeholder_and_a_missing_channel() {
    let scene = Scene::new();
    let refused = |more: toml::Table| {
        let plugin = webhook("https://hooks.example.org/", "", more);
        scene.set_config(&credential(&scene, ConfigFile::new().plugin("chat", plugin)));
        scene.hookrun(&["check"]).expect_exit(3).stderr
    };
    let text = refused(toml! { template = "{name} on {hots}" });
    assert!(text.contains("config.template") && text.contains("drv-path"), "{text}");
    let text = refused(toml! { body = { embeds = [{ title = "{hots}" }] } });
    assert!(text.contains("config.body.embeds"), "{text}");
    let text = refused(toml! { format = "ntfy" });
    assert!(text.contains("`channel`") || text.contains("\"channel\""), "{text}");
}
