use crate::callback::{Failure, Fixed, ProgressRelay, TraceRelay};
use crate::error::{check, fill, Error, Result, Status};
use crate::model::Handle as ModelHandle;
use crate::{sys, Chat, Message, Model, Progress, Routing, RoutingEvent, RoutingTokens, Sampling, TokenProbability, Tokenizer};
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::ControlFlow;
use std::ptr::{null_mut, NonNull};
use std::sync::{Arc, Weak};

mirror! {
    /// Element type of the latent KV cache.
    CacheType: dsv2_cache_type {
        /// The smallest type that gives the same text as 32 bits, as far as anyone can tell.
        Default = DSV2_CACHE_DEFAULT,
        /// 32-bit floating point.
        F32 = DSV2_CACHE_F32,
        /// 16-bit floating point.
        F16 = DSV2_CACHE_F16,
        /// 8 bits.
        Q8 = DSV2_CACHE_Q8,
        /// 6 bits on average.
        Q6 = DSV2_CACHE_Q6,
    }
}

mirror! {
    /// The form in which attention is computed; all give the same logits up to rounding.
    Attention: dsv2_attention {
        /// The cheaper one.
        Auto = DSV2_ATTENTION_AUTO,
        /// Queries are taken to the latent.
        Absorbed = DSV2_ATTENTION_ABSORBED,
        /// The latent is taken to keys and values.
        Expanded = DSV2_ATTENTION_EXPANDED,
    }
}

/// How to open a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Tokens; 0: the model's context length.
    pub max_length: u32,
    /// Element type of the cache.
    pub cache_type: CacheType,
    /// For tests.
    pub attention: Attention,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { max_length: 0, cache_type: CacheType::Default, attention: Attention::Auto }
    }
}

/// The library's session, closed when its last user is gone.
struct Handle {
    ptr: NonNull<sys::dsv2_session>,
    _model: Arc<ModelHandle>,
}

// SAFETY: a dsv2_session may be used and closed from any thread. A shared one is only cancelled, which any thread may do.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the library and nothing can use it any more.
        unsafe { sys::dsv2_session_close(self.ptr.as_ptr()) }
    }
}

type OwnedProgress = ProgressRelay<Box<dyn FnMut(Progress) -> ControlFlow<()> + Send>>;

/// One sequence of tokens. It may go from thread to thread, and keeps its model in memory.
///
/// A failed call leaves the session as it was.
pub struct Session {
    handle: Arc<Handle>,
    model: Model,
    progress: Option<Fixed<OwnedProgress>>,
    trace: Option<Fixed<TraceRelay>>,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the closures are Send, the library's session may be used from any thread by one at a time.
unsafe impl Send for Session {}

/// Stops what a session is doing, from another thread; made by [`Session::canceller`].
#[derive(Clone)]
pub struct Canceller {
    handle: Weak<Handle>,
}

impl Canceller {
    /// Lets the call at work on the session fail with [`Status::Cancelled`]. Without a call, or after the session is closed,
    /// does nothing.
    pub fn cancel(&self) {
        if let Some(handle) = self.handle.upgrade() {
            // SAFETY: the session is open as long as `handle` is.
            unsafe { sys::dsv2_session_cancel(handle.ptr.as_ptr()) }
        }
    }
}

impl Session {
    /// Opens an empty session.
    pub fn open(model: &Model, options: &SessionOptions) -> Result<Session> {
        let options = sys::dsv2_session_options {
            struct_size: size_of::<sys::dsv2_session_options>(),
            max_length: options.max_length,
            cache_type: options.cache_type.to_raw(),
            attention: options.attention.to_raw(),
            progress: None,
            progress_user: null_mut(),
        };
        let mut ptr = null_mut();
        // SAFETY: the model is open; both pointers are valid.
        check(unsafe { sys::dsv2_session_open(model.handle.ptr.as_ptr(), &options, &mut ptr) })?;
        Ok(Session::own(ptr, model.clone()))
    }

    fn own(ptr: *mut sys::dsv2_session, model: Model) -> Session {
        let ptr = NonNull::new(ptr).expect("the library gave a session");
        let handle = Arc::new(Handle { ptr, _model: model.handle.clone() });
        Session { handle, model, progress: None, trace: None, not_sync: PhantomData }
    }

    pub(crate) fn ptr(&self) -> *mut sys::dsv2_session {
        self.handle.ptr.as_ptr()
    }

    /// The session's model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// A handle with which another thread can stop this session's work.
    pub fn canceller(&self) -> Canceller {
        Canceller { handle: Arc::downgrade(&self.handle) }
    }

    /// The result of a feed or step: what a callback left, or the status.
    fn check(&mut self, status: sys::dsv2_status) -> Result<()> {
        let failures =
            [self.progress.as_mut().map(|p| &mut p.get_mut().failure), self.trace.as_mut().map(|t| &mut t.get_mut().failure)];
        // Both are asked, so that neither keeps its failure for the next call.
        let [first, second] = failures.map(|failure| failure.map_or(Ok(()), |f| f.check(sys::dsv2_status::DSV2_OK)));
        first.and(second).and_then(|()| check(status))
    }

    /// Appends tokens and computes the logits of the last.
    pub fn feed(&mut self, tokens: &[i32]) -> Result<()> {
        // SAFETY: the session is open, the tokens are as many as they are said to be, and the callbacks' relays live.
        let status = unsafe { sys::dsv2_session_feed(self.ptr(), tokens.as_ptr(), tokens.len()) };
        self.check(status)
    }

    /// Sets, or with None removes, a closure that is called now and then while tokens are fed; `ControlFlow::Break` cancels.
    pub fn set_progress<F>(&mut self, call: Option<F>) -> Result<()>
    where
        F: FnMut(Progress) -> ControlFlow<()> + Send + 'static,
    {
        let relay = call.map(|call| Fixed::new(OwnedProgress::new(Box::new(call))));
        let (callback, user) = match &relay {
            Some(relay) => (Some(OwnedProgress::callback as _), relay.user()),
            None => (None, null_mut()),
        };
        // SAFETY: the relay's address stays, and it lives until the callback is set anew or the session can feed no more.
        check(unsafe { sys::dsv2_session_set_progress(self.ptr(), callback, user) })?;
        self.progress = relay;
        Ok(())
    }

    /// Draws the next token. It is not appended: feed it, or stop.
    pub fn sample(&mut self) -> Result<i32> {
        let mut token = -1;
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_sample(self.ptr(), &mut token) })?;
        Ok(token)
    }

    /// Sets how to draw; a session starts with `Sampling::default()`.
    ///
    /// The session's random numbers go on, so that options and biases may change before every draw. A seed that differs from
    /// the one set before starts them anew.
    pub fn set_sampling(&mut self, sampling: &Sampling) -> Result<()> {
        // SAFETY: the session is open; the structure is copied.
        sampling.with_raw(|raw| check(unsafe { sys::dsv2_session_set_sampling(self.ptr(), raw) }))
    }

    /// Starts the session's random numbers anew. So forks are seeded apart, and a text is drawn again as it was.
    pub fn seed(&mut self, seed: u64) -> Result<()> {
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_seed(self.ptr(), seed) })
    }

    /// The logits of the last token, one per entry of the vocabulary, not copied.
    pub fn logits(&self) -> Result<&[f32]> {
        let mut logits = std::ptr::null();
        // SAFETY: the logits are valid until the session is changed, for which it must be borrowed mutably.
        unsafe {
            check(sys::dsv2_session_logits(self.ptr(), &mut logits))?;
            Ok(std::slice::from_raw_parts(logits, self.model.handle.vocab_size))
        }
    }

    /// The k most likely next tokens, most likely first.
    pub fn top_tokens(&self, k: usize) -> Result<Vec<TokenProbability>> {
        if k > self.model.handle.vocab_size {
            return Err(Error::new(Status::Argument, format!("k is {k}, which is more than there are tokens")));
        }
        let mut top = vec![sys::dsv2_token_probability { token: 0, log_probability: 0.0 }; k];
        // SAFETY: there is room for k entries.
        check(unsafe { sys::dsv2_session_top_tokens(self.ptr(), k, top.as_mut_ptr()) })?;
        let probability =
            |raw: &sys::dsv2_token_probability| TokenProbability { token: raw.token, log_probability: raw.log_probability };
        Ok(top.iter().map(probability).collect())
    }

    /// The log probability of one token as the next.
    pub fn log_probability(&self, token: i32) -> Result<f32> {
        let mut value = 0.0;
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_log_probability(self.ptr(), token, &mut value) })?;
        Ok(value)
    }

    /// The number of tokens in the session.
    pub fn length(&self) -> Result<usize> {
        let mut n = 0;
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_length(self.ptr(), &mut n) })?;
        Ok(n)
    }

    /// The session's tokens.
    pub fn tokens(&self) -> Result<Vec<i32>> {
        // SAFETY: the session is open, the buffer has the capacity that it is said to have.
        fill(|tokens, capacity, n| unsafe { sys::dsv2_session_tokens(self.ptr(), tokens, capacity, n) })
    }

    /// The bytes that one token takes in the cache.
    pub fn bytes_per_token(&self) -> Result<u64> {
        let mut bytes = 0;
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_bytes_per_token(self.ptr(), &mut bytes) })?;
        Ok(bytes)
    }

    /// Rewinds to the first n tokens. If n is less than the length, there are no logits until the next feed.
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_truncate(self.ptr(), n) })
    }

    /// A new session with the first n tokens of this one, its sampler and random state, but none of its callbacks. Memory is
    /// shared until one of the two changes it.
    pub fn fork(&self, n: usize) -> Result<Session> {
        let mut copy = null_mut();
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_fork(self.ptr(), n, &mut copy) })?;
        Ok(Session::own(copy, self.model.clone()))
    }

    /// Draws tokens and feeds them until `max_tokens` or a token that ends the text, which is neither yielded nor fed.
    ///
    /// A yielded token is in the session already, so the loop may be left at any time.
    pub fn generate_tokens(&mut self, max_tokens: usize) -> Tokens<'_> {
        Tokens { session: self, left: max_tokens }
    }

    /// Feeds a prompt (after the beginning-of-sequence token if the session is empty; "" goes on where the session stands)
    /// and gives its continuation as it comes.
    pub fn generate(&mut self, prompt: &str, max_tokens: usize) -> Result<Text<'_>> {
        let tokenizer = self.model.tokenizer()?;
        let prompt = match (self.length()?, prompt) {
            (0, prompt) => tokenizer.encode_first(prompt)?,
            (_, "") => Vec::new(),
            (_, prompt) => tokenizer.encode(prompt)?,
        };
        self.text(tokenizer, &prompt, max_tokens)
    }

    /// Says something to the model and gives its reply as it comes.
    ///
    /// The session is the conversation: the next call is the next turn, also after a restore, a fork, or a reply that was left
    /// early. Only an empty session takes a system text.
    pub fn chat(&mut self, message: &str, system: Option<&str>, max_tokens: usize) -> Result<Text<'_>> {
        let tokenizer = self.model.tokenizer()?;
        let turn = Message { role: "user", content: message };
        let prompt = match (self.tokens()?.last(), system) {
            (None, None) => tokenizer.encode_chat(&[turn], 0)?,
            (None, Some(content)) => tokenizer.encode_chat(&[Message { role: "system", content }, turn], 0)?,
            (Some(_), Some(_)) => {
                return Err(Error::new(Status::Argument, "a system text can only begin a conversation"));
            }
            (Some(last), None) => {
                // The session has the past, whatever it was: any two messages stand for it.
                let [user, assistant] = ["user", "assistant"].map(|role| Message { role, content: "" });
                let unclosed = !self.model.end_tokens().contains(last);
                let messages = &[user, assistant, turn];
                tokenizer.encode_prompt(&Chat { messages, first: 2, unclosed, ..Chat::default() })?
            }
        };
        self.text(tokenizer, &prompt, max_tokens)
    }

    fn text(&mut self, tokenizer: Tokenizer, prompt: &[i32], max_tokens: usize) -> Result<Text<'_>> {
        if !prompt.is_empty() {
            self.feed(prompt)?;
        }
        Ok(Text { tokens: self.generate_tokens(max_tokens), tokenizer, pending: Vec::new() })
    }

    /// Copies the session's counts of expert use.
    pub fn routing(&self, tokens: RoutingTokens) -> Result<Routing> {
        let mut ptr = null_mut();
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_routing(self.ptr(), tokens.to_raw(), &mut ptr) })?;
        Ok(Routing::own(ptr))
    }

    /// Sets the session's counts to zero.
    pub fn reset_routing(&mut self) -> Result<()> {
        // SAFETY: the session is open.
        check(unsafe { sys::dsv2_session_routing_reset(self.ptr()) })
    }

    /// Sets, or with None removes, a closure that is told each token's way through each layer's router.
    pub fn set_routing_trace<F>(&mut self, call: Option<F>) -> Result<()>
    where
        F: FnMut(&RoutingEvent<'_>) + Send + 'static,
    {
        let session = self.ptr();
        let relay = call.map(|call| Fixed::new(TraceRelay { call: Box::new(call), failure: Failure::default(), session }));
        let (callback, user) = match &relay {
            Some(relay) => (Some(TraceRelay::callback as _), relay.user()),
            None => (None, null_mut()),
        };
        // SAFETY: the relay's address stays, and it lives until the callback is set anew or the session can feed no more.
        check(unsafe { sys::dsv2_session_set_routing_trace(session, callback, user) })?;
        self.trace = relay;
        Ok(())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("length", &self.length()).finish()
    }
}

/// Tokens as they are drawn; see [`Session::generate_tokens`].
#[derive(Debug)]
pub struct Tokens<'a> {
    session: &'a mut Session,
    left: usize,
}

impl Iterator for Tokens<'_> {
    type Item = Result<i32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let token = match self.session.sample() {
            Ok(token) if self.session.model.end_tokens().contains(&token) => {
                self.left = 0;
                return None;
            }
            Ok(token) => token,
            Err(error) => return self.fail(error),
        };
        match self.session.feed(&[token]) {
            Ok(()) => Some(Ok(token)),
            Err(error) => self.fail(error),
        }
    }
}

impl Tokens<'_> {
    fn fail(&mut self, error: Error) -> Option<Result<i32>> {
        self.left = 0;
        Some(Err(error))
    }
}

/// Text as it comes, in whole characters; see [`Session::generate`].
#[derive(Debug)]
pub struct Text<'a> {
    tokens: Tokens<'a>,
    tokenizer: Tokenizer,
    pending: Vec<u8>, // bytes of a character that is not whole yet
}

impl Iterator for Text<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let bytes = match self.tokens.next() {
                Some(token) => token.and_then(|token| self.tokenizer.decode_bytes(&[token])),
                None if self.pending.is_empty() => return None,
                None => return Some(Ok(take_text(&mut self.pending, usize::MAX))),
            };
            match bytes {
                Ok(bytes) => self.pending.extend(bytes),
                Err(error) => return Some(Err(error)),
            }
            // SAFETY: the bytes are as many as they are said to be.
            let complete = unsafe { sys::dsv2_utf8_complete(self.pending.as_ptr() as *const _, self.pending.len()) };
            if complete > 0 {
                return Some(Ok(take_text(&mut self.pending, complete)));
            }
        }
    }
}

fn take_text(pending: &mut Vec<u8>, n: usize) -> String {
    let rest = pending.split_off(n.min(pending.len()));
    String::from_utf8_lossy(&std::mem::replace(pending, rest)).into_owned()
}

/// One session's part in a [`step`].
#[derive(Debug)]
pub struct StepItem<'a> {
    /// Each session at most once in a step, all of the same model.
    pub session: &'a mut Session,
    /// To append, at least one.
    pub tokens: &'a [i32],
    /// None, or room for a row of logits per token.
    pub logits: Option<&'a mut [f32]>,
}

/// Feeds many sessions in one pass, which is faster than [`Session::feed`] for each. Returns a result for each session, or an
/// error if nothing changed in any session.
pub fn step(model: &Model, items: &mut [StepItem<'_>]) -> Result<Vec<Result<()>>> {
    let mut raw = Vec::with_capacity(items.len());
    for item in items.iter_mut() {
        let needed = item.tokens.len().checked_mul(model.handle.vocab_size);
        if item.session.model.handle.vocab_size != model.handle.vocab_size {
            return Err(Error::new(Status::Mismatch, "a session belongs to another model"));
        }
        if let Some(logits) = &item.logits {
            if Some(logits.len()) != needed {
                let message = format!("there is room for {} logits, {:?} are needed", logits.len(), needed);
                return Err(Error::new(Status::Buffer, message));
            }
        }
        raw.push(sys::dsv2_step_item {
            struct_size: size_of::<sys::dsv2_step_item>(),
            session: item.session.ptr(),
            tokens: item.tokens.as_ptr(),
            n_tokens: item.tokens.len(),
            logits: item.logits.as_mut().map_or(null_mut(), |logits| logits.as_mut_ptr()),
            status: sys::dsv2_status::DSV2_OK,
        });
    }
    // SAFETY: all pointers are valid and as long as they are said to be; the callbacks' relays live.
    let status = unsafe { sys::dsv2_step(model.handle.ptr.as_ptr(), raw.as_mut_ptr(), raw.len()) };
    let overall = check(status);
    let results: Vec<_> = items.iter_mut().zip(&raw).map(|(item, raw)| item.session.check(raw.status)).collect();
    // Sessions that were cancelled, or whose numbers went wrong, failed alone.
    match overall {
        Err(error) if error.status() != Status::Cancelled && results.iter().all(Result::is_err) => Err(error),
        _ => Ok(results),
    }
}
