use super::*;

/// Created by `nix-store --generate-binary-cache-key cache.example.org-1` (Nix 2.8.0) for this
/// test, and trusted nowhere.
const SECRET: &str = "cache.example.org-1:iyswr8cIS3EpkZsECLhHODIkK86bhfo1CwVCKR9fzg3bZzuvkw9+3GJk1axHUSOoVUAG6TNy19As8aQG8ujdTA==";
const PUBLIC: &str = "cache.example.org-1:22c7r5MPftxiZNWsR1EjqFVABukzctfQLPGkBvLo3Uw=";

fn keys(text: &str) -> (tempfile::TempDir, SigningKeys) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, text).unwrap();
    let config = format!("[signing-keys.\"cache.example.org-1\"]\nfile = {file:?}\n");
    let config = Config::parse(Path::new("hookrun.toml"), &config).unwrap();
    (dir, SigningKeys::new(&config))
}

fn info() -> PathInfo {
    PathInfo {
        path: "/srv/exp/store/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0".into(),
        nar_hash: "sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj".into(),
        nar_size: 120,
        // Nix sorts references by path.
        references: vec![
            "/srv/exp/store/p723wxdipj0l4izmjkpnq3l02yh5s5zz-a-1.0".into(),
            "/srv/exp/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev".into(),
        ],
        deriver: None,
        signatures: vec![],
        ca: None,
        ultimate: true,
        registration_time: 0,
    }
}

#[test]
fn the_signed_text_is_that_of_nix_and_the_signature_is_valid() {
    let text = fingerprint("/srv/exp/store", &info()).unwrap();
    assert_eq!(
        text,
        "1;/srv/exp/store/h7vfijp7wiaxzqw9rx3rhqqv1h7vf29d-b-1.0;\
         sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj;120;\
         /srv/exp/store/cvar8nqq71gb8af77ichz56mh6f9hd65-b-1.0-dev,/srv/exp/store/p723wxdipj0l4izmjkpnq3l02yh5s5zz-a-1.0"
    );
    let (_dir, keys) = keys(SECRET);
    assert_eq!(keys.public_key("cache.example.org-1").unwrap(), PUBLIC);
    let signature = keys.sign("cache.example.org-1", "/srv/exp/store", &info()).unwrap();
    let signature = nix_narinfo::NixSignature::parse(&signature).unwrap();
    let trusted = nix_narinfo::TrustedPublicKey::parse(PUBLIC).unwrap();
    assert!(signature.verify(text.as_bytes(), &[trusted]).unwrap());
}

#[test]
fn malformed_paths_are_not_signed() {
    let (_dir, keys) = keys(SECRET);
    let sign = |info: &PathInfo| {
        keys.sign("cache.example.org-1", "/srv/exp/store", info).unwrap_err().to_string()
    };
    let errors = [
        sign(&PathInfo { nar_size: 0, ..info() }),
        sign(&PathInfo {
            references: vec!["/elsewhere/p723wxdipj0l4izmjkpnq3l02yh5s5zz-a".into()],
            ..info()
        }),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn unusable_key_files_are_reported_without_the_secret() {
    let message = |text: &str| {
        let (dir, keys) = keys(text);
        let error = keys.public_key("cache.example.org-1").unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "/etc/nix")
    };
    let (_, encoded) = SECRET.split_once(':').unwrap();
    let (swapped, rest) = encoded.split_at(44);
    let mut errors = vec![
        message(PUBLIC),
        message(&SECRET.replace("example.org-1", "example.org-2")),
        message("-----BEGIN OPENSSH PRIVATE KEY-----"),
        message(&format!("cache.example.org-1:{rest}{swapped}")),
        message(""),
    ];
    let (dir, keys) = keys(SECRET);
    std::fs::remove_file(dir.path().join("key")).unwrap();
    let gone = keys.public_key("cache.example.org-1").unwrap_err().to_string();
    let uid = format!("uid {}", rustix::process::geteuid().as_raw());
    errors.push(gone.replace(&dir.path().display().to_string(), "/etc/nix").replace(&uid, "uid N"));
    errors.push(keys.public_key("other").unwrap_err().to_string());
    assert!(errors.iter().all(|error| !error.contains(&encoded[..10])), "no secret in a message");
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn a_changed_file_takes_effect() {
    let (dir, keys) = keys(SECRET);
    assert!(keys.public_key("cache.example.org-1").is_ok());
    std::fs::write(dir.path().join("key"), "x").unwrap();
    assert!(keys.public_key("cache.example.org-1").is_err());
}

#[test]
fn throwaway_keys_need_no_file() {
    let config = "[signing-keys.a]\nfile = \"/none\"\n[signing-keys.b]\nfile = \"/none\"\n";
    let keys = SigningKeys::throwaway(&Config::parse(Path::new("hookrun.toml"), config).unwrap());
    assert_ne!(keys.public_key("a").unwrap(), keys.public_key("b").unwrap());
    assert!(keys.sign("a", "/srv/exp/store", &info()).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_key_file(bytes: Vec<u8>, text in "\\PC*:[A-Za-z0-9+/=]*") {
        let _ = parse("a", &bytes);
        let _ = parse("a", text.as_bytes());
    }
}
