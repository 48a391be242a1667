//! Derivations: written by Nix, but named by events that build users may write.

use std::path::Path;

use hookrun_nix::derivation::Derivation;

pub(crate) fn run(data: &[u8]) {
    let path = Path::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello.drv");
    match Derivation::parse(path, data) {
        Ok(derivation) => {
            for output in &derivation.outputs {
                let _ = derivation.output_path(&output.name);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
