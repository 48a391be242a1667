//! Whatever goes wrong with the conversation or inside, each question has one answer.

use super::*;

#[test]
fn a_panic_inside_still_answers() {
    let mut reply = Vec::new();
    let story = Story::machines("panic").asks(&here("a"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Place::new().session(&story.bytes, &mut reply, &mut Scripted::default(), None, false)
    }));
    assert!(result.is_err());
    assert_eq!(answers(&String::from_utf8(reply).unwrap()), ["# decline-permanently"]);
}

/// A conversation with a dead machine, a full one, one that is not there, and a build.
fn recorded() -> (Story, Vec<usize>) {
    let mut story =
        Story::machines("dead x86_64-linux - 4 2 kvm;full x86_64-linux;m1 aarch64-linux - 1 1 big");
    let mut ends = vec![story.bytes.len()];
    for request in [
        here("a"),
        Request::of("b", "x86_64-linux", &["kvm"], false),
        Request::of("c", "riscv64-linux", &[], true),
        here("d"),
    ] {
        story = story.asks(&request);
        ends.push(story.bytes.len());
    }
    story = story.asks(&Request::of("e", "aarch64-linux", &["big"], true));
    ends.push(story.bytes.len());
    (story.inputs(), ends)
}

#[test]
fn the_stream_may_end_at_every_byte() {
    let (story, ends) = recorded();
    for cut in 0..=story.bytes.len() {
        let (_, reply, _) = play(&story.bytes[..cut], None);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let asked = whole.saturating_sub(1);
        // A question that was begun is answered too; nobody reads it. After the accept there are no
        // questions.
        let begun = usize::from(cut > 0 && asked < 5 && !ends.contains(&cut));
        assert_eq!(answers(&reply).len(), asked + begun, "cut at {cut}: {reply}");
    }
}

#[test]
fn every_byte_may_be_garbage() {
    let (story, _) = recorded();
    for index in 0..story.bytes.len() {
        for garbage in [0x00, 0x01, 0x7f, 0xff] {
            let mut bytes = story.bytes.clone();
            bytes[index] = garbage;
            let (_, reply, _) = play(&bytes, None);
            let count = answers(&reply).len();
            // Five questions, and at most one more that the garbage makes of the inputs.
            assert!((1..=6).contains(&count), "{garbage:#x} at {index}: {reply}");
        }
    }
}

#[test]
fn nix_may_go_away_at_every_write() {
    struct Closing(usize);
    impl Write for Closing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (story, _) = recorded();
    for writes in 0..40 {
        for early_accept in [false, true] {
            let mut stock = Scripted::default();
            Place::new().session(&story.bytes, Closing(writes), &mut stock, None, early_accept);
        }
    }
}

#[test]
fn a_policy_that_hangs_is_not_waited_for() {
    let hang: Select = |_| loop {
        std::thread::park();
    };
    let story = Story::machines("m1").asks(&here("a")).inputs();
    let place = Place { deadline: Duration::from_millis(50), ..Place::new() };
    let (end, reply, _) = place.play(&story.bytes, Some(hang), false);
    assert_eq!(end, End::Built(0));
    assert!(reply.contains("it did not answer within 50ms"), "{reply}");
}

/// Every session of a thousand has its faults at random: garbage, an early end, a reader that goes
/// away, machines of all kinds.
#[test]
fn a_thousand_sessions_with_faults() {
    use rand::{RngExt as _, SeedableRng as _};
    struct Failing(Vec<u8>, usize);
    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = self.1.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    const KINDS: [&str; 5] = ["dead", "full", "lost", "bad", "good"];
    let mut random = rand::rngs::SmallRng::seed_from_u64(1);
    let place = Place::new();
    for session in 0..1000 {
        let machines: Vec<String> = (0..random.random_range(1..4))
            .map(|number| format!("{}{number}", KINDS[random.random_range(0..5)]))
            .collect();
        let mut story = far(&machines.iter().map(String::as_str).collect::<Vec<_>>());
        let mut after_settings = Vec::new();
        elsewhere("a").write(&mut after_settings).unwrap();
        Inputs::of(&["/nix/store/a"]).write(&mut after_settings).unwrap();
        let settings = story.bytes.len() - after_settings.len();
        let fault = random.random_range(0..3);
        let at = random.random_range(0..story.bytes.len());
        match fault {
            0 => story.bytes.truncate(at),
            1 => story.bytes[at] ^= random.random_range(1..=255u8),
            _ => {}
        }
        let writes = if fault == 2 { random.random_range(0..20) } else { usize::MAX };
        let mut reply = Failing(Vec::new(), writes);
        // Memory is kept from one to the next, so that health plays its part; but a full machine
        // must not be waited for.
        let early_accept = !machines.iter().any(|machine| machine.starts_with("full"));
        place.session(&story.bytes, &mut reply, &mut Scripted::default(), None, early_accept);
        let text = String::from_utf8_lossy(&reply.0).into_owned();
        // One question; garbage may make a second one of the inputs, an early end none at all. One
        // answer. Where it was no accept, what follows the question is not understood, which ends
        // the session.
        let answers = answers(&text);
        let (first, rest) =
            answers.split_first().map_or((None, &[][..]), |(first, rest)| (Some(*first), rest));
        assert!(
            rest.is_empty() || (first != Some("# accept") && rest == ["# decline-permanently"]),
            "{session}: {text}"
        );
        // The settings end where the question begins.
        let asked = fault == 1 || (fault == 0 && at > 0 && at != settings);
        assert!(
            first.is_some() == asked || fault == 2,
            "session {session}, fault {fault} at {at}: {text}"
        );
    }
}
