mod common;

use common::{long_prompt, model, model_path, no_progress, sampling};
use dsv2::{Canceller, Error, Model, Session, Status, Tokenizer};
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::thread;

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}

#[test]
fn types_cross_threads_as_promised() {
    is_send::<Model>();
    is_sync::<Model>();
    is_send::<Tokenizer>();
    is_sync::<Tokenizer>();
    is_send::<Session>();
    is_send::<Canceller>();
    is_sync::<Canceller>();
    is_send::<Error>();
    is_sync::<Error>();
}

#[test]
fn a_session_and_a_tokenizer_keep_their_model() {
    let mut session = model().session().unwrap();
    let tokenizer = session.model().tokenizer().unwrap();
    session.feed(&[0, 5]).unwrap();
    drop(session);
    assert_eq!(tokenizer.decode(&tokenizer.encode("still here").unwrap()).unwrap(), "still here");
}

#[test]
fn a_panic_in_a_progress_callback_is_an_error() {
    let mut session = model().session().unwrap();
    session.feed(&[0, 5]).unwrap();
    let before = session.logits().unwrap().to_vec();
    session.set_progress(Some(|_| panic!("from the {}", "callback"))).unwrap();
    let error = session.feed(&long_prompt()).unwrap_err();
    assert_eq!(error.status(), Status::Cancelled);
    assert!(error.message().contains("from the callback"), "{}", error);
    assert_eq!(session.tokens().unwrap(), [0, 5]);
    assert_eq!(session.logits().unwrap(), before);
    session.set_progress(no_progress()).unwrap();
    session.feed(&long_prompt()).unwrap();
    let error = Model::options().progress(&mut |_| panic!("while opening")).open(model_path()).unwrap_err();
    assert!(error.message().contains("while opening"));
    let opened = Model::options().log(|_, _| panic!("while logging")).open(model_path());
    assert!(opened.unwrap_err().message().contains("while logging"));
}

#[test]
fn a_payload_that_panics_when_dropped_is_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("again");
        }
    }
    let mut session = model().session().unwrap();
    session.set_progress(Some(|_| std::panic::panic_any(Bomb))).unwrap();
    assert_eq!(session.feed(&long_prompt()).unwrap_err().status(), Status::Cancelled);
    assert_eq!(session.length().unwrap(), 0);
}

#[test]
fn a_callback_that_breaks_cancels() {
    let mut session = model().session().unwrap();
    let mut calls = 0;
    session
        .set_progress(Some(move |report: dsv2::Progress| {
            assert!(report.done <= report.total);
            calls += 1;
            if calls == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }))
        .unwrap();
    assert_eq!(session.feed(&long_prompt()).unwrap_err().status(), Status::Cancelled);
    assert_eq!(session.length().unwrap(), 0);
    session.feed(&[0]).unwrap();
}

#[test]
fn a_fork_has_no_callbacks() {
    let mut session = model().session().unwrap();
    session.feed(&[0, 5]).unwrap();
    session.set_progress(Some(|_| ControlFlow::Break(()))).unwrap();
    let mut copy = session.fork(2).unwrap();
    assert!(session.feed(&long_prompt()).is_err());
    drop(session);
    copy.feed(&long_prompt()).unwrap();
}

#[test]
fn cancel_from_another_thread() {
    let mut session = model().session().unwrap();
    let canceller = session.canceller();
    let (reached, wait) = mpsc::channel();
    let (cancelled, resume) = mpsc::channel::<()>();
    let other = canceller.clone();
    let thread = thread::spawn(move || {
        wait.recv().unwrap();
        other.cancel();
        drop(cancelled);
    });
    session
        .set_progress(Some(move |_| {
            let _ = reached.send(());
            let _ = resume.recv();
            ControlFlow::Continue(())
        }))
        .unwrap();
    assert_eq!(session.feed(&long_prompt()).unwrap_err().status(), Status::Cancelled);
    thread.join().unwrap();
    drop(session);
    canceller.cancel(); // the session is gone: nothing happens
}

#[test]
fn ten_threads_on_one_model_give_the_right_texts() {
    let model = model();
    let text = |model: &Model, seed| -> String {
        let mut session = model.session().unwrap();
        session.set_sampling(&sampling(seed)).unwrap();
        session.generate("Once upon a time", 40).unwrap().map(Result::unwrap).collect()
    };
    let expected: Vec<_> = (0..10).map(|seed| text(&model, seed)).collect();
    let threads: Vec<_> = (0..10)
        .map(|seed| {
            let model = model.clone();
            thread::spawn(move || text(&model, seed))
        })
        .collect();
    for (thread, expected) in threads.into_iter().zip(expected) {
        assert_eq!(thread.join().unwrap(), expected);
    }
}
