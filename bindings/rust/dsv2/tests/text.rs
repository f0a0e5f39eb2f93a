mod common;

use common::{model, model_path, sampling};
use dsv2::{step, Chat, Message, Phase, Progress, Sampling, Session, Status, StepItem, Tokenizer};
use std::ops::ControlFlow;

#[test]
fn decoding_gives_back_any_bytes() {
    let tokenizer = model().tokenizer().unwrap();
    for text in ["", "Hello, world", "naïve ½ 漢字 🙂\n\n\t", "nul \0 in it", "<|begin|>"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
    let every_byte: Vec<u8> = (0..=255).collect();
    assert_eq!(tokenizer.decode_bytes(&tokenizer.encode(&every_byte).unwrap()).unwrap(), every_byte);
}

#[test]
fn encoding_is_watched_and_cancelled() {
    let tokenizer = model().tokenizer().unwrap();
    let text = "Once upon a time. ".repeat(20000);
    let (mut reports, mut last) = (0, 0);
    let mut watch = |report: Progress| {
        assert!(report.phase == Phase::Encode && report.total == text.len() as u64 && report.done >= last);
        (reports, last) = (reports + 1, report.done);
        ControlFlow::Continue(())
    };
    assert_eq!(tokenizer.encode_watched(&text, true, false, &mut watch).unwrap(), tokenizer.encode_first(&text).unwrap());
    assert!(reports > 3 && last == text.len() as u64);
    let stopped = tokenizer.encode_watched(&text, false, true, &mut |_| ControlFlow::Break(()));
    assert_eq!(stopped.unwrap_err().status(), Status::Cancelled);
}

#[test]
fn special_tokens_come_only_where_asked_for() {
    let tokenizer = Tokenizer::open(model_path().join("tokenizer.json")).unwrap();
    let eos = tokenizer.info().eos_token_id.unwrap_or(1);
    assert_eq!(tokenizer.find("<|end|>").unwrap(), Some(eos));
    assert_eq!(tokenizer.find("no such token").unwrap(), None);
    assert_eq!(tokenizer.encode_special("<|end|>").unwrap(), [eos]);
    assert!(!tokenizer.encode("<|end|>").unwrap().contains(&eos));
    assert_eq!(tokenizer.decode(&[eos]).unwrap(), "");
    assert_eq!(tokenizer.decode_special(&[eos]).unwrap(), b"<|end|>");
    assert_eq!(tokenizer.token_bytes(eos).unwrap(), b"<|end|>");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let model = model();
    let text = |seed| -> String {
        let mut session = model.session().unwrap();
        session.set_sampling(&sampling(seed)).unwrap();
        session.generate("Once upon a time", 30).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(text(42), text(42));
    assert_ne!(text(42), text(43));
}

#[test]
fn random_numbers_go_on_until_they_are_seeded() {
    let mut session = model().session().unwrap();
    let draws = |session: &mut Session, n| -> Vec<i32> { (0..n).map(|_| session.sample().unwrap()).collect() };
    session.feed(&[0, 5]).unwrap();
    session.set_sampling(&sampling(42)).unwrap();
    let expected = draws(&mut session, 40);
    session.seed(42).unwrap();
    let mut drawn = draws(&mut session, 20);
    session.set_sampling(&Sampling { logit_bias: vec![(1, f32::NEG_INFINITY)], ..sampling(42) }).unwrap();
    session.set_sampling(&sampling(42)).unwrap();
    drawn.extend(draws(&mut session, 20));
    assert_eq!(drawn, expected);
    let mut fork = session.fork(2).unwrap();
    fork.seed(43).unwrap();
    assert_ne!(draws(&mut session, 20), draws(&mut fork, 20));
}

#[test]
fn the_text_is_that_of_the_tokens_whatever_the_pieces() {
    let model = model();
    let tokenizer = model.tokenizer().unwrap();
    let [mut text, mut tokens] = [(); 2].map(|()| {
        let mut session = model.session().unwrap();
        session.set_sampling(&sampling(1)).unwrap();
        session
    });
    let pieces: String = text.generate("Once", 100).unwrap().map(Result::unwrap).collect();
    tokens.feed(&tokenizer.encode_first("Once").unwrap()).unwrap();
    let ids: Vec<i32> = tokens.generate_tokens(100).map(Result::unwrap).collect();
    assert_eq!(pieces, tokenizer.decode(&ids).unwrap());
    assert_eq!(text.tokens().unwrap(), tokens.tokens().unwrap());
}

#[test]
fn a_loop_left_early_leaves_exactly_what_was_given() {
    let mut session = model().session().unwrap();
    session.set_sampling(&Sampling { logit_bias: vec![(1, f32::NEG_INFINITY)], ..sampling(3) }).unwrap();
    session.feed(&[0, 5, 9]).unwrap();
    let mut whole = session.fork(3).unwrap();
    let mut given: Vec<i32> = session.generate_tokens(100).take(7).map(Result::unwrap).collect();
    assert_eq!(session.tokens().unwrap()[3..], given);
    given.extend(session.generate_tokens(3).map(Result::unwrap));
    assert_eq!(whole.generate_tokens(10).map(Result::unwrap).collect::<Vec<_>>(), given);
}

#[test]
fn a_chat_prompt_is_what_the_template_writes() {
    let folder = std::env::temp_dir().join(format!("dsv2-chat-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(model_path().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ tools | length }}{{ mood }}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let text = |chat: &Chat| tokenizer.decode(&tokenizer.encode_prompt(chat).unwrap()).unwrap();
    let messages = [Message { role: "user", content: "Hi" }, Message { role: "assistant", content: "So" }];
    assert_eq!(tokenizer.chat_template(), Some(template));
    assert_eq!(text(&Chat { messages: &messages, tools: Some("[{}]"), ..Chat::default() }), "<user>Hi<assistant>So1");
    assert_eq!(text(&Chat { messages: &messages, open: true, ..Chat::default() }), "<user>Hi<assistant>So");
    let json = Some("[{\"role\": \"tool\", \"content\": 7}]");
    assert_eq!(text(&Chat { messages_json: json, variables: Some("{\"mood\": \"!\"}"), ..Chat::default() }), "<tool>70!");
    let empty = tokenizer.encode_prompt(&Chat::default()).unwrap_err();
    assert!(empty.status() == Status::Argument && empty.to_string().contains("no message"));
    assert_eq!(tokenizer.encode_prompt(&Chat { tools: Some("\0"), ..Chat::default() }).unwrap_err().status(), Status::Argument);
}

#[test]
fn a_chat_goes_on_where_the_session_stands() {
    let model = model();
    let tokenizer = model.tokenizer().unwrap();
    let eos = tokenizer.info().eos_token_id.unwrap();
    assert_eq!(model.end_tokens(), [eos]);
    let mut session = model.session().unwrap();
    let hello = [Message { role: "system", content: "Be brief." }, Message { role: "user", content: "Hello" }];
    session.chat("Hello", Some("Be brief."), 5).unwrap().for_each(|text| drop(text.unwrap()));
    let prompt = tokenizer.encode_chat(&hello, 0).unwrap();
    let mut expected = session.tokens().unwrap();
    assert_eq!(expected[..prompt.len()], prompt);
    session.chat("And then?", None, 5).unwrap().for_each(|text| drop(text.unwrap()));
    let more = [Message { role: "assistant", content: "?" }, Message { role: "user", content: "And then?" }];
    expected.push(eos);
    expected.extend(tokenizer.encode_chat(&[hello, more].concat(), 3).unwrap());
    assert_eq!(session.tokens().unwrap()[..expected.len()], expected);
    assert_eq!(session.chat("more", Some("too late"), 5).unwrap_err().status(), Status::Argument);
}

#[test]
fn top_tokens_are_those_of_the_logits() {
    let mut session = model().session().unwrap();
    session.feed(&[0, 5, 9]).unwrap();
    let logits = session.logits().unwrap();
    assert_eq!(logits.len(), 384);
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let top = session.top_tokens(384).unwrap();
    assert!(top.windows(2).all(|pair| pair[0].log_probability >= pair[1].log_probability));
    for item in &top {
        let expected = f64::from(logits[item.token as usize]) - sum.ln();
        assert!((f64::from(item.log_probability) - expected).abs() < 1e-4);
        assert_eq!(session.log_probability(item.token).unwrap(), item.log_probability);
    }
    assert_eq!(session.top_tokens(385).unwrap_err().status(), Status::Argument);
}

#[test]
fn logits_are_not_copied() {
    let mut session = model().session().unwrap();
    session.feed(&[0, 5, 9]).unwrap();
    assert_eq!(session.logits().unwrap().as_ptr(), session.logits().unwrap().as_ptr());
}

#[test]
fn a_step_gives_the_bits_of_feeds() {
    let model = model();
    let texts: [&[i32]; 2] = [&[0, 5, 9], &[0, 300]];
    let [mut a, mut b, mut c, mut d] = [(); 4].map(|()| model.session().unwrap());
    a.feed(texts[0]).unwrap();
    b.feed(texts[1]).unwrap();
    let mut rows = vec![0.0; 2 * 384];
    let mut items = [
        StepItem { session: &mut c, tokens: texts[0], logits: None },
        StepItem { session: &mut d, tokens: texts[1], logits: Some(&mut rows) },
    ];
    assert!(step(&model, &mut items).unwrap().iter().all(Result::is_ok));
    assert_eq!(a.logits().unwrap(), c.logits().unwrap());
    assert_eq!(b.logits().unwrap(), d.logits().unwrap());
    assert_eq!(&rows[384..], d.logits().unwrap());
    let mut too_small = [StepItem { session: &mut a, tokens: &[1, 2], logits: Some(&mut rows[..384]) }];
    assert_eq!(step(&model, &mut too_small).unwrap_err().status(), Status::Buffer);
}

#[test]
fn a_session_whose_numbers_go_wrong_fails_alone_in_a_step() {
    let folder = std::env::temp_dir().join(format!("dsv2-rust-spoilt-{}", std::process::id()));
    common::copy_with_infinite_embedding(&folder, 7);
    let model = dsv2::Model::open(&folder).unwrap();
    let [mut alone, mut good, mut bad] = [(); 3].map(|()| model.session().unwrap());
    alone.feed(&[0, 5, 9]).unwrap();
    let mut items = [
        StepItem { session: &mut bad, tokens: &[0, 7], logits: None },
        StepItem { session: &mut good, tokens: &[0, 5, 9], logits: None },
    ];
    let results = step(&model, &mut items).unwrap();
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(error.status(), Status::Format);
    assert!(error.to_string().contains("items[0]: the cached latent of token 1 in layer 0"), "{error}");
    assert!(results[1].is_ok());
    assert_eq!(good.logits().unwrap(), alone.logits().unwrap());
    assert_eq!(bad.feed(&[0, 7]).unwrap_err().status(), Status::Format);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn errors_have_the_librarys_status_and_message() {
    let model = model();
    let missing = dsv2::Model::open("/nothing here").unwrap_err();
    assert_eq!(missing.status(), Status::Io);
    assert!(missing.message().contains("nothing here"));
    assert_eq!(dsv2::Model::open("a\0b").unwrap_err().status(), Status::Argument);
    let mut session = model.session().unwrap();
    assert_eq!(session.feed(&[]).unwrap_err().status(), Status::Argument);
    assert!(session.feed(&[0, 384]).unwrap_err().to_string().contains("384"));
    assert_eq!(session.sample().unwrap_err().status(), Status::State);
    assert_eq!(session.truncate(1).unwrap_err().status(), Status::Argument);
    assert_eq!(session.set_sampling(&Sampling { top_p: 7.0, ..Sampling::default() }).unwrap_err().status(), Status::Argument);
    assert_eq!(session.length().unwrap(), 0);
}
