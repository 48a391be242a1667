//! Where the credentials of S3 come from: profiles with roles, the container and the machine, each
//! against a service that stands for Amazon's. The real program fetches them in its sandbox.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use hookrun_tests::lab::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{ConfigFile, PluginTable, Ran, Scene, toml};

/// A service that gives the credentials of the S3 server of the lab: AWS's token service, the
/// machine's metadata and the container's.
struct Service {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

const LATER: &str = "2099-01-01T00:00:00Z";

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&requests);
        // It ends with the test program.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut reader = BufReader::new(connection.try_clone().unwrap());
                let mut head = Vec::new();
                for line in reader.by_ref().lines() {
                    match line {
                        Ok(line) if !line.is_empty() => head.push(line),
                        _ => break,
                    }
                }
                let Some(first) = head.first().cloned() else { continue };
                let length = head.iter().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().unwrap())
                });
                let mut body = vec![0; length.unwrap_or(0)];
                reader.read_exact(&mut body).unwrap();
                let asked = format!("{first} {}", String::from_utf8_lossy(&body));
                let answer = answer(&asked, &head);
                log.lock().unwrap().push(asked);
                let text = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}",
                    answer.len()
                );
                let _ = connection.write_all(text.as_bytes());
            }
        });
        Self { port, requests }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn asked(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|asked| asked.contains(part)).count()
    }
}

fn answer(asked: &str, head: &[String]) -> String {
    let json = format!(
        r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{ACCESS_KEY_ID}","SecretAccessKey":"{SECRET_ACCESS_KEY}","Token":"t","Expiration":"{LATER}","LastUpdated":"2026-01-01T00:00:00Z"}}"#
    );
    if asked.contains("Action=AssumeRole") {
        // Signed for the token service with the keys of the other profile.
        let signed = head.iter().any(|line| {
            line.contains("Credential=AKOTHER/") && line.contains("/eu-west-1/sts/aws4_request")
        });
        assert!(signed, "{head:?}");
        format!(
            "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{ACCESS_KEY_ID}</AccessKeyId>\
             <SecretAccessKey>{SECRET_ACCESS_KEY}</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>{LATER}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )
    } else if asked.starts_with("PUT /latest/api/token") {
        "metadata-token".to_owned()
    } else if asked.contains("/security-credentials/ ") {
        "role-of-the-machine".to_owned()
    } else {
        json
    }
}

/// Runs `hookrun check --live` for a bucket with these keys and these variables.
fn check(keys: toml::Table, variables: &[(&str, String)]) -> (Ran, Scene) {
    let scene = Scene::new().signing_key("lab-1");
    let server = S3Server::start(&scene.path("s3"), &["bucket"]);
    let mut store = server.anonymous_store("s3://bucket/prefix");
    store.remove("credentials");
    store.extend(keys);
    let file = ConfigFile::new()
        .plugin("cache", PluginTable::uploader("lab-1"))
        .signing_key("lab-1", "keys/lab-1.secret")
        .object_store("cache", store);
    scene.set_config(&file);
    let mut command = scene.hookrun_command(&["check", "--live"]);
    for (name, value) in variables {
        command.env(name, value);
    }
    let ran = Ran::of(&mut command);
    let keys: Vec<String> = server.writes().into_iter().map(|write| write.key).collect();
    if ran.status.success() {
        assert!(keys.iter().any(|key| key.contains("hookrun-check-")), "{keys:?}");
    }
    (ran, scene)
}

#[test]
fn a_profile_with_a_role_is_assumed() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let variables = [
        (
            "AWS_SHARED_CREDENTIALS_FILE",
            file(
                "credentials",
                "[other]\naws_access_key_id = AKOTHER\naws_secret_access_key = s\n",
            ),
        ),
        (
            "AWS_CONFIG_FILE",
            file(
                "config",
                "[profile ci]\nrole_arn = arn:aws:iam::1:role/ci\nsource_profile = other\nexternal_id = x7\n",
            ),
        ),
        ("AWS_ENDPOINT_URL_STS", service.url()),
    ];
    let (ran, _scene) = check(toml! { profile = "ci" }, &variables);
    ran.expect_success();
    assert!(service.asked("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fci") > 0);
    assert!(service.asked("ExternalId=x7") > 0);
}

#[test]
fn the_role_of_the_machine_is_used() {
    let service = Service::start();
    let (ran, _scene) = check(toml::Table::new(), &[("AWS_METADATA_ENDPOINT", service.url())]);
    ran.expect_success();
    assert!(service.asked("role-of-the-machine") > 0);
}

#[test]
fn the_credentials_of_the_container_are_used() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "container-token").unwrap();
    hookrun::demo::private_nix::set_mode(dir.path(), 0o755).unwrap();
    let (ran, _scene) = check(
        toml::Table::new(),
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", service.url() + "/credentials"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.display().to_string()),
        ],
    );
    ran.expect_success();
    assert!(service.asked("GET /credentials") > 0);
}
