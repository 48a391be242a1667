//! `tests/tests/integration/escape.rs` tests the wall itself in separate processes, because it
//! cannot be removed.

use super::*;

#[test]
fn a_process_with_threads_gets_no_wall() {
    // The test runner has threads.
    let error = std::thread::spawn(|| Wall::default().raise().unwrap_err()).join().unwrap();
    assert!(matches!(error, WallError::Threads(2..)), "{error}");
}

#[test]
fn an_unknown_user_is_named_with_the_fix() {
    let error = User::find("no-such-user").unwrap_err();
    insta::assert_snapshot!(error, @"there is no user `no-such-user`; create it with `useradd --system --no-create-home no-such-user`");
    let error = User::find("root").unwrap_err();
    insta::assert_snapshot!(error, @"`root` is root, which guests never run as; name another user");
}

#[test]
fn a_missing_part_is_an_error_if_the_sandbox_is_required() {
    let missing = || vec!["Landlock".to_owned()];
    let required = Wall { required: true, ..Wall::default() };
    let error = required.admit(missing()).unwrap_err();
    assert!(matches!(error, WallError::Missing(_)) && error.to_string().contains("Landlock"));
    assert_eq!(required.admit(Vec::new()).unwrap(), Vec::<String>::new());
    assert_eq!(Wall::default().admit(missing()).unwrap(), missing());
}
