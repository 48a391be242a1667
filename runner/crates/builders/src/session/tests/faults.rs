//! Tests that each question has one answer, whatever fails in the conversation or inside.

use super::*;

#[test]
fn a_panic_inside_still_answers() {
    let mut reply = Vec::new();
    let story = Conversation::machines("panic").asks(&here("a"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        TestHost::new().session(&story.bytes, &mut reply, &mut Scripted::default(), None, false)
    }));
    assert!(result.is_err());
    assert_eq!(answers(&String::from_utf8(reply).unwrap()), ["# decline-permanently"]);
}

/// Returns a conversation with a dead machine, a full one, a missing one, and a build.
fn recorded() -> (Conversation, Vec<usize>) {
    let mut story = Conversation::machines(
        "dead x86_64-linux - 4 2 kvm;full x86_64-linux;m1 aarch64-linux - 1 1 big",
    );
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
fn each_question_is_answered_if_the_stream_ends_at_any_byte() {
    let (story, ends) = recorded();
    for cut in 0..=story.bytes.len() {
        let (_, reply, _) = play(&story.bytes[..cut], None);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let asked = whole.saturating_sub(1);
        // A question that was begun is also answered, although nothing reads the answer. After the
        // accept there are no questions.
        let begun = usize::from(cut > 0 && asked < 5 && !ends.contains(&cut));
        assert_eq!(answers(&reply).len(), asked + begun, "cut at {cut}: {reply}");
    }
}

#[test]
fn each_question_is_answered_if_any_byte_is_garbage() {
    let (story, _) = recorded();
    for index in 0..story.bytes.len() {
        for garbage in [0x00, 0x01, 0x7f, 0xff] {
            let mut bytes = story.bytes.clone();
            bytes[index] = garbage;
            let (_, reply, _) = play(&bytes, None);
            let count = answers(&reply).len();
            // There are five questions, and at most one more that the garbage makes from the
            // inputs.
            assert!((1..=6).contains(&count), "{garbage:#x} at {index}: {reply}");
        }
    }
}

#[test]
fn the_session_ends_if_nix_exits_at_any_write() {
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
            TestHost::new().session(&story.bytes, Closing(writes), &mut stock, None, early_accept);
        }
    }
}

#[test]
fn the_session_does_not_wait_for_a_policy_that_hangs() {
    let hang: Select = |_| loop {
        std::thread::park();
    };
    let story = Conversation::machines("m1").asks(&here("a")).inputs();
    let place = TestHost { deadline: Duration::from_millis(50), ..TestHost::new() };
    let (end, reply, _) = place.play(&story.bytes, Some(hang), false);
    assert_eq!(end, End::Built(0));
    assert!(reply.contains("it did not answer within 50ms"), "{reply}");
}

/// Runs a thousand sessions with random faults: garbage, an early end, a reader that exits,
/// machines of all kinds.
#[test]
fn a_thousand_sessions_with_random_faults_answer_each_question() {
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
    let place = TestHost::new();
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
        // The history is kept from one session to the next, so that the health of machines matters.
        // A full machine must not be waited for.
        let early_accept = !machines.iter().any(|machine| machine.starts_with("full"));
        place.session(&story.bytes, &mut reply, &mut Scripted::default(), None, early_accept);
        let text = String::from_utf8_lossy(&reply.0).into_owned();
        // There is one question. Garbage may turn the inputs into a second one, and an early end
        // may leave none. There is one answer. If it is not an accept, the data after the question
        // cannot be read, which ends the session.
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
