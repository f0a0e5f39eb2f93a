use crate::sys;

/// How to draw a token from the logits, in this order: bias, penalties, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Sampling {
    /// Amounts added to tokens' logits, each token at most once; negative infinity forbids a token.
    pub logit_bias: Vec<(i32, f32)>,
    /// Divides (or multiplies, if negative) the logits of tokens seen; 1: none.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token seen.
    pub presence_penalty: f32,
    /// Subtracted as often as the token was seen.
    pub frequency_penalty: f32,
    /// Tokens looked back on by the penalties; 0: the whole session.
    pub penalty_window: u32,
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the k most likely; 0: all.
    pub top_k: u32,
    /// Keep the fewest most likely tokens that reach this probability; 1: all.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely one; 0: none.
    pub min_p: f32,
    /// Where the random numbers start. They start anew when this changes, or by [`Session::seed`](crate::Session::seed).
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        let raw = Self::raw_defaults();
        Sampling {
            logit_bias: Vec::new(),
            repetition_penalty: raw.repetition_penalty,
            presence_penalty: raw.presence_penalty,
            frequency_penalty: raw.frequency_penalty,
            penalty_window: raw.penalty_window,
            temperature: raw.temperature,
            top_k: raw.top_k,
            top_p: raw.top_p,
            min_p: raw.min_p,
            seed: raw.seed,
        }
    }
}

impl Sampling {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    fn raw_defaults() -> sys::dsv2_sampling {
        // SAFETY: zero is a valid value of every field, and the function fills them.
        unsafe {
            let mut raw: sys::dsv2_sampling = std::mem::zeroed();
            raw.struct_size = std::mem::size_of::<sys::dsv2_sampling>();
            let status = sys::dsv2_sampling_get_defaults(&mut raw);
            debug_assert_eq!(status, sys::dsv2_status::DSV2_OK);
            raw
        }
    }

    /// Calls with the C form, which is valid during the call.
    pub(crate) fn with_raw<T>(&self, call: impl FnOnce(&sys::dsv2_sampling) -> T) -> T {
        let biases: Vec<_> = self.logit_bias.iter().map(|&(token, bias)| sys::dsv2_logit_bias { token, bias }).collect();
        call(&sys::dsv2_sampling {
            logit_bias: biases.as_ptr(),
            n_logit_bias: biases.len(),
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            ..Self::raw_defaults()
        })
    }
}

/// A token beside the natural logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TokenProbability {
    /// The token's id.
    pub token: i32,
    /// Of softmax over the session's raw logits.
    pub log_probability: f32,
}
