//! Machines files and the `builders` setting.

use std::path::Path;

use hookrun_nix::machines::{self, Machines, Reading};

pub(crate) fn run(data: &[u8]) {
    // `@file` reads what is behind a form feed, so that included files are fuzzed too.
    let mut parts = data.splitn(2, |byte| *byte == 0xc);
    let (builders, included) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut reads = 0;
    let (found, _) =
        machines::parse_with(builders, "x86_64-linux", Reading::NEWEST, &mut |path: &Path| {
            reads += 1;
            // Files that include a file many times grow with each level; the bound on levels is
            // what is tested, not patience.
            if reads > 100 || path.as_os_str().is_empty() {
                return Err(std::io::ErrorKind::NotFound.into());
            }
            Ok(included.to_vec())
        });
    let Machines { machines, warnings } = found;
    assert!(warnings.iter().all(|warning| !warning.is_empty()));
    for machine in machines {
        let alone = |line: &str| {
            let reading = Reading::NEWEST;
            let (found, _) =
                machines::parse_with(line.as_bytes(), "x86_64-linux", reading, &mut |_: &Path| {
                    panic!("a line that reads a file: {line}")
                });
            assert!(found.warnings.is_empty() && found.machines.len() == 1, "{line:?}: {found:?}");
            found.machines.into_iter().next().unwrap()
        };
        assert_eq!(alone(&machine.to_string()), machine, "what is written is read as the same");
        // Nix's own hook gets exactly this machine.
        let told = alone(&machine.line_for_stock_hook());
        assert_eq!(
            (told.uri, told.systems, told.max_jobs),
            (machine.uri, machine.systems, machine.max_jobs)
        );
    }
}
