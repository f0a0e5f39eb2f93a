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

/// Copies the model; the embedding of `token` becomes infinite.
pub fn copy_with_infinite_embedding(folder: &Path, token: usize) {
    let source = model_path();
    std::fs::create_dir_all(folder).unwrap();
    for file in std::fs::read_dir(source).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let start = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header = std::str::from_utf8(&bytes[8..start]).unwrap();
    let tensor = header.split_once("\"model.embed_tokens.weight\"").unwrap().1;
    assert!(tensor.split_once('}').unwrap().0.contains("BF16"));
    let offsets = tensor.split_once("data_offsets").unwrap().1.split_once('[').unwrap().1.split_once(']').unwrap().0;
    let offsets: Vec<usize> = offsets.split(',').map(|n| n.trim().parse().unwrap()).collect();
    let row = (offsets[1] - offsets[0]) / 384;
    for element in bytes[start + offsets[0] + token * row..][..row].chunks_mut(2) {
        element.copy_from_slice(&[0x80, 0x7f]);
    }
    std::fs::write(path, bytes).unwrap();
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
