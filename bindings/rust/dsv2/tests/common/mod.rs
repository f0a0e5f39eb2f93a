//! A small model with text: the golden checkpoint `lite` with a tokenizer that fits its vocabulary.
#![allow(dead_code)] // each test uses a part

use dsv2::{Model, Progress, Sampling};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Once;

pub fn model_path() -> PathBuf {
    static MADE: Once = Once::new();
    let folder = std::env::temp_dir().join(format!("dsv2-rust-test-{}", std::process::id()));
    MADE.call_once(|| {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/data");
        std::fs::create_dir_all(&folder).unwrap();
        for source in ["goldens/lite", "bytes"] {
            for file in std::fs::read_dir(data.join(source)).unwrap().map(Result::unwrap) {
                std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
    });
    folder
}

pub fn model() -> Model {
    Model::open(model_path()).unwrap()
}

pub fn sampling(seed: u64) -> Sampling {
    Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed, ..Sampling::default() }
}

/// Takes many reports of progress.
pub fn long_prompt() -> Vec<i32> {
    (0..2000).map(|i| 2 + i % 380).collect()
}

pub fn no_progress() -> Option<fn(Progress) -> ControlFlow<()>> {
    None
}
