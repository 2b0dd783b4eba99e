//! `aha chat` through a pipe.

use crate::support::{Home, fixture};

fn chat(home: &Home, args: &[&str], input: &str) -> (String, String) {
    let model = fixture("llama/smol");
    let args = [&["chat", "-m", model.as_str(), "-t", "0", "-n", "8"], args].concat();
    let ran = home.run_with_input(&args, input);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    (ran.out, ran.err)
}

#[test]
fn a_conversation_remembers_until_it_is_reset() {
    let home = Home::new();
    let (first, _) = chat(&home, &[], "Hello!\n");
    let (twice, _) = chat(&home, &[], "Hello!\nHello!\n");
    assert!(twice.starts_with(&first));
    assert_ne!(
        twice,
        format!("{first}{first}"),
        "the second answer knows the first"
    );
    let (reset, _) = chat(&home, &[], "Hello!\n/reset\nHello!\n");
    assert_eq!(reset, format!("{first}{first}"));
}

#[test]
fn the_system_message_can_be_given_and_changed() {
    let home = Home::new();
    let (plain, _) = chat(&home, &[], "Hello!\n");
    let (given, _) = chat(&home, &["--system", "Be brief."], "Hello!\n");
    assert_ne!(given, plain);
    let (changed, told) = chat(&home, &[], "/system Be brief.\n/system\nHello!\n");
    assert_eq!((changed, told.as_str()), (given, "Be brief.\n"));
}

#[test]
fn a_backslash_continues_a_line() {
    let home = Home::new();
    let (one, _) = chat(&home, &[], "Hello \\\nworld\n");
    let (other, _) = chat(&home, &[], "Hello world\n");
    assert_eq!(one.lines().count(), other.lines().count());
    assert_ne!(one, other, "the line break is part of the text");
}

#[test]
fn commands_are_told_apart_from_texts() {
    let home = Home::new();
    let (answer, told) = chat(&home, &[], "/help\n/fly\n/quit\nHello!\n");
    assert_eq!(answer, "", "nothing is asked after the end");
    assert!(
        told.contains("/reset") && told.contains("error: unknown command: /fly"),
        "{told}"
    );
}

#[test]
fn a_turn_that_does_not_fit_is_told_and_forgotten() {
    let home = Home::new();
    let long = "word ".repeat(200);
    let input = format!("{long}\nHi\n");
    let (answer, told) = chat(&home, &["--context-length", "120"], &input);
    let (alone, _) = chat(&home, &["--context-length", "120"], "Hi\n");
    assert!(
        told.contains("error: ") && told.contains("context holds 120 tokens"),
        "{told}"
    );
    assert_eq!(answer, alone);
}

#[test]
fn a_piped_conversation_leaves_no_history() {
    let home = Home::new();
    chat(&home, &[], "a secret\n");
    assert!(!home.path().join("models/chat_history").exists());
}
