//! Talks, and keeps the conversation in a file. Usage: cargo run --example chat -- MODEL FILE
use dsv2::{Model, RestoreOptions, SaveOptions};
use std::io::{BufRead, Write};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, file] = <[String; 2]>::try_from(arguments).map_err(|_| "usage: chat MODEL FILE")?;

    let mut session = Model::open(model)?.session()?;
    if Path::new(&file).exists() {
        let n = session.restore(&file, RestoreOptions::default())?;
        eprintln!("going on after {} tokens", n);
    }
    for line in std::io::stdin().lock().lines() {
        for text in session.chat(&line?, None, 500)? {
            print!("{}", text?);
            std::io::stdout().flush()?;
        }
        println!();
        session.save(&file, SaveOptions { append: true, ..SaveOptions::default() })?;
    }
    Ok(())
}
