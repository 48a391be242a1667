//! Step 2: an empty second store that trusts only the demo's key substitutes the path from the
//! cache. With another key it refuses the path.

use anyhow::Result;

use crate::demo::StepResult;
use crate::demo::private_nix::PrivateNix;
use crate::demo::stage::{CommandOutput, Stage, ended};

/// Substitutes twice: with an unrelated key, then with the right one.
pub(super) fn run(stage: &mut Stage) -> Result<StepResult> {
    let Some(path) = stage.uploaded.clone() else {
        return Ok(StepResult::Broken("step 1 uploaded no path".into()));
    };
    let (_, stranger) = stage.nix.generate_key(&stage.path("keys"), "stranger-1")?;
    let second = stage.path("second");
    let cache = format!("file://{}", stage.cache().display());
    let realise = |key: &str| -> Result<CommandOutput> {
        let mut command = stage.nix.command_on_store(&second, "nix-store");
        command.arg("--realise").arg(&path).args(["--option", "substituters", &cache]);
        command.args(["--option", "require-sigs", "true", "--option", "trusted-public-keys", key]);
        let said = stage.run(&mut command)?;
        stage.show.nix(&said.stderr);
        stage.show.nix(&said.stdout);
        Ok(said)
    };
    let here = PrivateNix::path_in_store(&second, &path);
    let refused = realise(&stranger)?;
    if refused.status.success() || here.exists() {
        return Ok(StepResult::Broken(
            "Nix accepted the path with a key that did not sign it".into(),
        ));
    }
    let taken = realise(&stage.public_key)?;
    if !taken.status.success() {
        return Ok(StepResult::Broken(format!("`nix-store --realise` {}", ended(taken.status))));
    }
    let (original, copy) = (std::fs::read(&path)?, std::fs::read(&here)?);
    if original != copy {
        return Ok(StepResult::Broken(format!("{} and {} differ", path.display(), here.display())));
    }
    stage.show.command(&format!("cat {}", here.display()));
    stage.show.file(&String::from_utf8_lossy(&copy));
    Ok(StepResult::Works(
        "refused with an unrelated key, accepted with the right one, and the contents are the same"
            .into(),
    ))
}
