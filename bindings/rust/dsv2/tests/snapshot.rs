mod common;

use common::{model, model_path, sampling};
use dsv2::{RestoreOptions, SaveOptions, Session, SnapshotInfo, Status};
use std::error::Error as _;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

fn told() -> Session {
    let mut session = model().session().unwrap();
    session.set_sampling(&sampling(7)).unwrap();
    session.generate("Once upon a time", 20).unwrap().for_each(|text| drop(text.unwrap()));
    session
}

fn saved(session: &mut Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    session.save_to(&mut bytes, SaveOptions::default()).unwrap();
    bytes
}

#[test]
fn a_restored_session_goes_on_with_the_same_tokens() {
    let mut session = told();
    let path = model_path().join("conversation");
    session.save(&path, SaveOptions::default()).unwrap();
    let bytes = saved(&mut session);
    let header = SnapshotInfo::inspect(&path).unwrap();
    assert_eq!(header.n_tokens as usize, session.length().unwrap());
    assert_eq!(header.model_fingerprint, session.model().info().fingerprint);
    let mut others = [(); 2].map(|()| session.model().session().unwrap());
    let n = session.length().unwrap();
    assert_eq!(others[0].restore(&path, RestoreOptions::default()).unwrap(), n);
    assert_eq!(others[1].restore_from(&mut bytes.as_slice(), RestoreOptions::default()).unwrap(), n);
    let expected: Vec<_> = session.generate_tokens(20).map(Result::unwrap).collect();
    for other in &mut others {
        assert_eq!(other.generate_tokens(20).map(Result::unwrap).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn only_the_shared_prefix_is_restored_for_a_prompt() {
    let mut session = told();
    let bytes = saved(&mut session);
    let mut prompt = session.tokens().unwrap()[..9].to_vec();
    prompt.extend([383, 383]);
    let options = RestoreOptions { prompt: Some(&prompt), ..RestoreOptions::default() };
    let n = session.restore_from(&mut bytes.as_slice(), options).unwrap();
    assert!(n == 8 || n == 9);
    assert_eq!(session.tokens().unwrap(), prompt[..n]);
}

#[test]
fn feeding_what_is_left_of_a_prompt_always_gives_its_logits() {
    let mut session = told();
    let (bytes, tokens) = (saved(&mut session), session.tokens().unwrap());
    for prompt in [&tokens[..], &tokens[..9], &tokens[..1]] {
        let mut other = session.model().session().unwrap();
        let options = RestoreOptions { prompt: Some(prompt), ..RestoreOptions::default() };
        let n = other.restore_from(&mut bytes.as_slice(), options).unwrap();
        assert_eq!(n, if prompt.len() == tokens.len() { n } else { prompt.len() - 1 });
        if n < prompt.len() {
            other.feed(&prompt[n..]).unwrap();
        }
        assert_eq!(other.tokens().unwrap(), prompt);
        other.logits().unwrap();
    }
}

#[test]
fn a_damaged_snapshot_changes_nothing() {
    let mut session = told();
    let bytes = saved(&mut session);
    session.truncate(3).unwrap();
    let before = session.tokens().unwrap();
    for end in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        assert!(session.restore_from(&mut &bytes[..end], RestoreOptions::default()).is_err());
        assert_eq!(session.tokens().unwrap(), before);
    }
}

struct Broken(fn() -> io::Result<usize>);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        (self.0)()
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        (self.0)()
    }
}

#[test]
fn what_a_stream_does_wrong_comes_back_and_changes_nothing() {
    let mut session = told();
    let before = session.tokens().unwrap();
    let refuse = || Err(io::Error::new(io::ErrorKind::Other, "the stream refused"));
    for error in [
        session.save_to(&mut Broken(refuse), SaveOptions::default()).unwrap_err(),
        session.restore_from(&mut Broken(refuse), RestoreOptions::default()).unwrap_err(),
    ] {
        assert_eq!(error.status(), Status::Io);
        assert!(error.source().unwrap().to_string().contains("the stream refused"));
    }
    for error in [
        session.save_to(&mut Broken(|| panic!("the stream panicked")), SaveOptions::default()).unwrap_err(),
        session.restore_from(&mut Broken(|| panic!("the stream panicked")), RestoreOptions::default()).unwrap_err(),
    ] {
        assert_eq!(error.status(), Status::Cancelled);
        assert!(error.message().contains("the stream panicked"));
    }
    let error = session.restore_from(&mut Broken(|| Ok(usize::MAX)), RestoreOptions::default()).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    let mut cancel = |_| ControlFlow::Break(());
    let options = SaveOptions { progress: Some(&mut cancel), ..SaveOptions::default() };
    assert_eq!(session.save_to(&mut Vec::new(), options).unwrap_err().status(), Status::Cancelled);
    assert_eq!(session.tokens().unwrap(), before);
}
