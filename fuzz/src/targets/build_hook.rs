//! What Nix says to the build hook: settings, questions, inputs. From a process that may die or be
//! out of step at any byte.

use std::os::fd::AsFd as _;

use hookrun_builders::protocol::request::{Inputs, Request};
use hookrun_builders::protocol::settings::Settings;
use hookrun_builders::run::stock::{Offer, StockHook, Target as Machine};
use hookrun_builders::session::Session;
use hookrun_config as config;
use hookrun_nix::event::NixDirs;
use hookrun_nix::wire;

/// Refuses every offer, so that no build begins.
struct Refuses;

impl StockHook for Refuses {
    fn offer(
        &mut self,
        _: &Settings,
        target: Machine<'_>,
        _: &Request,
        relay: &mut dyn FnMut(&[u8]),
    ) -> Offer {
        relay(b"no\n");
        match target.machine.uri.len() % 2 {
            0 => Offer::Full,
            _ => Offer::Failed("refused".to_owned()),
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut from = data;
    let settings = match Settings::read(&mut from) {
        Ok(Some(settings)) => Some(settings),
        Ok(None) | Err(_) => None,
    };
    let mut questions = 0_usize;
    if let Some(settings) = &settings {
        let builders = String::from_utf8_lossy(settings.builders()).into_owned();
        let mut again = Vec::new();
        settings.write(&mut again, &builders).unwrap();
        let read = Settings::read(&mut again.as_slice()).unwrap().unwrap();
        assert_eq!(read.builders(), builders.as_bytes());
        let _ = (settings.system(), settings.division());
        while let Ok(Some(request)) = Request::read(&mut from) {
            let mut again = Vec::new();
            request.write(&mut again).unwrap();
            assert_eq!(Request::read(&mut again.as_slice()).unwrap().as_ref(), Some(&request));
            let candidate = request.candidate();
            let _ = settings.local_machine(
                &candidate.system,
                &candidate.required_features,
                request.am_willing(),
            );
            questions += 1;
        }
    }
    if let Ok(inputs) = Inputs::read(&mut &*data) {
        let mut again = Vec::new();
        inputs.write(&mut again).unwrap();
        assert_eq!(Inputs::read(&mut again.as_slice()).unwrap(), inputs);
    }
    let _ = wire::read_list(&mut &*data, "a list");
    session(data, settings.as_ref(), questions);
}

/// However the stream goes on, each question has one directive, and what is out of step ends in one
/// more that ends it all.
fn session(data: &[u8], settings: Option<&Settings>, questions: usize) {
    // Neither files that the input names, nor another store's locks.
    let usual = NixDirs::from_env();
    if settings.is_some_and(|settings| {
        settings.builders().contains(&b'@') || settings.dirs_of_store(&usual) != usual
    }) {
        return;
    }
    let mut reply = Vec::new();
    let mut stock = Refuses;
    let nix = std::io::stderr();
    // Nothing is remembered, and nothing accepted before it is connected to.
    let nowhere = std::path::PathBuf::from("/proc/nonexistent");
    let session = Session {
        input: data,
        reply: &mut reply,
        nix: nix.as_fd(),
        stock: &mut stock,
        policy: None,
        nix_dirs: NixDirs { state: nowhere.clone(), ..NixDirs::from_env() },
        builders: nowhere,
        options: config::Builders { early_accept: false, ..config::Builders::default() },
    };
    session.run();
    let text = String::from_utf8_lossy(&reply);
    let directives: Vec<&str> = text.lines().filter(|line| line.starts_with("# ")).collect();
    let known = ["# decline", "# postpone", "# decline-permanently"];
    assert!(directives.iter().all(|line| known.contains(line)), "{directives:?}");
    assert!(directives.len() <= questions + 1, "{questions} questions: {directives:?}");
    let given_up = directives.iter().position(|line| *line == "# decline-permanently");
    assert!(
        given_up.is_none_or(|index| index + 1 == directives.len()),
        "nothing follows: {directives:?}"
    );
    assert!(
        given_up.is_some() || directives.len() == questions,
        "{questions} questions: {directives:?}"
    );
}
