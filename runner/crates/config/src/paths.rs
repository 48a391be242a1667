//! The files that a configuration names. All of them are relative to the directory of the
//! configuration, independent of the current directory.

use std::path::{Path, PathBuf};

use super::{Config, Credentials, Mail, PluginSource, SigningKey};

/// A file with a secret, and the keys that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The keys, such as `["signing-keys", "cache-1", "file"]`.
    pub keys: Vec<String>,
    pub path: PathBuf,
}

/// Makes every relative path absolute.
pub(super) fn anchor(config: &mut Config) {
    let base = config.path.parent().unwrap_or(Path::new("/")).to_owned();
    for path in paths_mut(config) {
        // An absolute path replaces the base.
        *path = base.join(&*path);
    }
}

fn paths_mut(config: &mut Config) -> Vec<&mut PathBuf> {
    let mut paths = Vec::new();
    for SigningKey { file } in config.signing_keys.values_mut() {
        paths.push(file);
    }
    for store in config.object_stores.values_mut() {
        let Credentials {
            access_key_id_file,
            secret_access_key_file,
            session_token_file,
            anonymous: _,
        } = &mut store.credentials;
        paths.extend(access_key_id_file);
        paths.extend(secret_access_key_file);
        paths.extend(session_token_file);
        paths.extend(&mut store.ca_file);
        paths.extend(&mut store.client_certificate_file);
        paths.extend(&mut store.client_key_file);
    }
    for mail in config.mail.values_mut() {
        let Mail { password_file, ca_file, directory, program, .. } = mail;
        paths.extend(password_file);
        paths.extend(ca_file);
        paths.extend(directory);
        // A bare name is looked up in PATH, as a shell does.
        paths.extend(program.as_mut().filter(|program| program.components().count() > 1));
    }
    for credential in config.http_credentials.values_mut() {
        paths.extend(credential.files_mut());
    }
    for plugin in config.plugins.values_mut() {
        if let PluginSource::File(file) = &mut plugin.source {
            paths.push(file);
        }
        paths.extend(plugin.grant.http.iter_mut().filter_map(|grant| grant.ca_file.as_mut()));
    }
    paths
}

impl Config {
    /// Returns the files with secrets: keys, passwords and tokens. An access key id is not a
    /// secret.
    pub fn secret_files(&self) -> Vec<SecretFile> {
        let mut files = Vec::new();
        let mut add = |keys: [&str; 3], path: &Path| {
            let keys = keys.map(str::to_owned).to_vec();
            files.push(SecretFile { keys, path: path.to_owned() });
        };
        for (name, SigningKey { file }) in &self.signing_keys {
            add(["signing-keys", name, "file"], file);
        }
        for (name, store) in &self.object_stores {
            let from = &store.credentials;
            for (key, file) in [
                ("secret-access-key-file", &from.secret_access_key_file),
                ("session-token-file", &from.session_token_file),
                ("client-key-file", &store.client_key_file),
            ] {
                if let Some(file) = file {
                    add(["object-stores", name, key], file);
                }
            }
        }
        for (name, mail) in &self.mail {
            if let Some(file) = &mail.password_file {
                add(["mail", name, "password-file"], file);
            }
        }
        for (name, credential) in &self.http_credentials {
            for (key, file) in credential.files() {
                if key != "access-key-file" {
                    add(["http-credentials", name, key], file);
                }
            }
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [plugins.a]
        source = "a.wasm"
        [[plugins.a.grant.http]]
        url = "https://h/"
        ca-file = "tls/ca.pem"
        [object-stores.s]
        url = "s3://b"
        credentials.access-key-id-file = "s3/id"
        credentials.secret-access-key-file = "s3/secret"
        credentials.session-token-file = "s3/token"
        [signing-keys."cache-1"]
        file = "cache-1.secret"
        [mail.smtp]
        transport = "smtp"
        url = "smtps://h"
        username = "u"
        password-file = "smtp/password"
        ca-file = "/etc/ssl/ca.pem"
        [mail.dir]
        directory = "mail"
        [mail.program]
        transport = "sendmail"
        program = "bin/sendmail"
        [mail.bare]
        transport = "sendmail"
        program = "msmtp"
        [http-credentials.bearer]
        kind = "bearer"
        token-file = "http/token"
        [http-credentials.aws]
        kind = "aws-sigv4"
        access-key-file = "http/id"
        secret-key-file = "http/secret"
        region = "r"
        service = "s"
    "#;

    #[test]
    fn relative_paths_are_relative_to_the_configuration() {
        let mut config = Config::parse(Path::new("/etc/hookrun/hookrun.toml"), TEXT).unwrap();
        let paths: Vec<String> =
            paths_mut(&mut config).iter().map(|path| path.display().to_string()).collect();
        insta::assert_snapshot!(paths.join("\n"), @"
        /etc/hookrun/cache-1.secret
        /etc/hookrun/s3/id
        /etc/hookrun/s3/secret
        /etc/hookrun/s3/token
        /etc/hookrun/mail
        /etc/hookrun/bin/sendmail
        /etc/hookrun/smtp/password
        /etc/ssl/ca.pem
        /etc/hookrun/http/id
        /etc/hookrun/http/secret
        /etc/hookrun/http/token
        /etc/hookrun/a.wasm
        /etc/hookrun/tls/ca.pem
        ");
        let program = |name: &str| config.mail[name].program.clone().unwrap();
        assert_eq!(program("bare"), Path::new("msmtp"));
        assert!(config.files().iter().all(|file| file.is_absolute()), "{:?}", config.files());
    }

    #[test]
    fn files_with_secrets_are_known_by_their_keys() {
        let config = Config::parse(Path::new("/etc/hookrun/hookrun.toml"), TEXT).unwrap();
        let files: Vec<String> = config
            .secret_files()
            .iter()
            .map(|SecretFile { keys, path }| format!("{} = {}", keys.join("."), path.display()))
            .collect();
        insta::assert_snapshot!(files.join("\n"), @"
        signing-keys.cache-1.file = /etc/hookrun/cache-1.secret
        object-stores.s.secret-access-key-file = /etc/hookrun/s3/secret
        object-stores.s.session-token-file = /etc/hookrun/s3/token
        mail.smtp.password-file = /etc/hookrun/smtp/password
        http-credentials.aws.secret-key-file = /etc/hookrun/http/secret
        http-credentials.bearer.token-file = /etc/hookrun/http/token
        ");
    }
}
