//! The part of Rust in the test that all languages give the same tokens; see tests/bindings/same.c of the repository.
use dsv2::{Model, RestoreOptions, Sampling, SaveOptions, Session};

fn generate(session: &mut Session, n: usize) -> dsv2::Result<()> {
    for token in session.generate_tokens(n) {
        println!("{}", token?);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [path, how, snapshot] = <[String; 3]>::try_from(arguments).map_err(|_| "usage: same MODEL fresh|restore SNAPSHOT")?;
    let model = Model::open(path)?;
    let mut session = model.session()?;
    if how == "fresh" {
        session.set_sampling(&Sampling {
            logit_bias: model.info().eos_token_id.map(|eos| (eos, f32::NEG_INFINITY)).into_iter().collect(),
            repetition_penalty: 1.1,
            frequency_penalty: 0.1,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.01,
            seed: 42,
            ..Sampling::default()
        })?;
        session.feed(&model.tokenizer()?.encode_first("Once upon a time")?)?;
        generate(&mut session, 48)?;
        session.save(snapshot, SaveOptions::default())?;
    } else {
        session.restore(snapshot, RestoreOptions::default())?;
    }
    generate(&mut session, 16)?;
    Ok(())
}
