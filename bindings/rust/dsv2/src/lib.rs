//! Run DeepSeek-V2 language models on CPUs, inside your program.
//!
//! A [`Model`] is opened once and shared by all threads. A [`Session`] is one sequence of tokens with its latent KV cache and
//! its sampler. A [`Tokenizer`] turns text into ids and back.
//!
//! ```no_run
//! use dsv2::{Model, Sampling};
//! use std::io::Write;
//!
//! # fn main() -> dsv2::Result<()> {
//! let model = Model::open("DeepSeek-V2-Lite-Chat")?;
//! let mut session = model.session()?;
//! session.set_sampling(&Sampling { temperature: 0.7, seed: 1, ..Sampling::default() })?;
//! for text in session.generate("Once upon a time", 100)? {
//!     print!("{}", text?);
//!     std::io::stdout().flush().unwrap();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A process that is forked goes on with a model on which no call was at work at the fork, on the calling threads alone. If
//! a call was at work, every call in the child gives an error of kind `State`: the child opens the model again.
//!
//! A failed call leaves what it was to change as it was. Many threads can use a model at once. One thread at a time can use a
//! session, which the borrow checker ensures. A panic in a callback cancels the call, which returns the panic as its error.
#![deny(missing_docs)]
#![warn(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

/// Declares an enumeration that mirrors one of the library's, with conversions.
macro_rules! mirror {
    ($(#[$meta:meta])* $name:ident: $raw:ident { $($(#[$doc:meta])* $item:ident = $value:ident,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum $name { $($(#[$doc])* $item,)* }

        impl $name {
            // Each mirror uses the directions it needs.
            #[allow(dead_code)]
            pub(crate) fn to_raw(self) -> sys::$raw {
                match self { $($name::$item => sys::$raw::$value,)* }
            }

            #[allow(dead_code)]
            pub(crate) fn from_raw(raw: sys::$raw) -> Option<Self> {
                match raw { $(sys::$raw::$value => Some($name::$item),)* _ => None }
            }
        }
    };
}

mod callback;
mod error;
mod model;
mod routing;
mod sampling;
mod session;
mod snapshot;
mod tokenizer;

pub use callback::{LogLevel, Phase, Progress};
pub use error::{Error, Result, Status};
pub use model::{pack, verify, BytesNeeded, Loading, MemoryInfo, Model, ModelInfo, ModelOptions, WeightType};
pub use routing::{Balance, ExpertLoad, LayerRouting, Routing, RoutingEvent, RoutingInfo, RoutingTokens};
pub use sampling::{Sampling, TokenProbability};
pub use session::{step, Attention, CacheType, Canceller, Session, SessionOptions, StepItem, Text, Tokens};
pub use snapshot::{RestoreOptions, SaveOptions, SnapshotInfo};
pub use tokenizer::{Chat, Message, Tokenizer, TokenizerInfo};

use dsv2_sys as sys;
use std::ffi::CStr;

/// The version of the library that is running, as "major.minor.patch".
pub fn library_version() -> &'static str {
    // SAFETY: the library returns a static string.
    unsafe { CStr::from_ptr(sys::dsv2_version_string()) }.to_str().unwrap_or("")
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
