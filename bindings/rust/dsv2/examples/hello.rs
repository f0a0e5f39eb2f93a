//! Continues a text. Usage: cargo run --example hello -- MODEL [PROMPT]
use dsv2::{Model, Sampling};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: hello MODEL [PROMPT]")?;
    let prompt = arguments.next().unwrap_or_else(|| "Once upon a time".into());

    let model = Model::open(path)?;
    let mut session = model.session()?;
    session.set_sampling(&Sampling { temperature: 0.7, seed: 1, ..Sampling::default() })?;
    for text in session.generate(&prompt, 100)? {
        print!("{}", text?);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
