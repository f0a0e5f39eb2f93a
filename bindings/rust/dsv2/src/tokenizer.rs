use crate::callback::Progress;
use crate::error::{c_path, c_string, check, fill, text, Result};
use crate::model::{token_id, with_progress, Handle as ModelHandle};
use crate::sys;
use std::ffi::CString;
use std::mem::size_of;
use std::ops::ControlFlow;
use std::os::raw::c_char;
use std::path::Path;
use std::ptr::{null, null_mut, NonNull};
use std::sync::Arc;

struct Handle {
    ptr: NonNull<sys::dsv2_tokenizer>,
    model: Option<Arc<ModelHandle>>, // the owner, where the tokenizer is a model's
}

// SAFETY: a dsv2_tokenizer never changes; any thread may use and close it.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.model.is_none() {
            // SAFETY: the pointer came from dsv2_tokenizer_open and nothing can use it any more.
            unsafe { sys::dsv2_tokenizer_close(self.ptr.as_ptr()) }
        }
    }
}

/// Byte-level BPE as a checkpoint describes it. Clones are the same tokenizer; any number of threads may use it.
///
/// ```no_run
/// # fn main() -> dsv2::Result<()> {
/// let tokenizer = dsv2::Tokenizer::open("DeepSeek-V2-Lite-Chat")?;
/// assert_eq!(tokenizer.decode(&tokenizer.encode("Hello")?)?, "Hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    handle: Arc<Handle>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// "system", "user", "assistant", or another that the chat template knows.
    pub role: &'a str,
    /// Never becomes a special token, whatever it spells.
    pub content: &'a str,
}

/// A conversation to be written as a prompt; the default has nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chat<'a> {
    /// Oldest first.
    pub messages: &'a [Message<'a>],
    /// Messages before this index count as already fed.
    pub first: usize,
    /// Instead of `messages`: a list as JSON, in the form of OpenAI's interface.
    pub messages_json: Option<&'a str>,
    /// What the model may call: a list as JSON, in the same form.
    pub tools: Option<&'a str>,
    /// Further variables of the template, as an object of JSON.
    pub variables: Option<&'a str>,
    /// The last message, an assistant's, goes on: the prompt ends with its text.
    pub open: bool,
    /// The reply before `first` was fed without the token that ended it: the prompt begins with what the template writes behind
    /// its text.
    pub unclosed: bool,
}

/// The facts about a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TokenizerInfo {
    /// One more than the largest id.
    pub vocab_size: u32,
    /// Merges of the byte-pair encoding.
    pub n_merges: u32,
    /// Special tokens.
    pub n_special: u32,
    /// The token that begins a sequence.
    pub bos_token_id: Option<i32>,
    /// The token that ends a sequence.
    pub eos_token_id: Option<i32>,
    /// Fill in the middle: before the prefix.
    pub fim_begin_id: Option<i32>,
    /// Fill in the middle: between prefix and suffix.
    pub fim_hole_id: Option<i32>,
    /// Fill in the middle: after the suffix.
    pub fim_end_id: Option<i32>,
    /// "v2", "v2.5" or "".
    pub chat_form: String,
}

impl Tokenizer {
    /// Opens a tokenizer without weights: a tokenizer.json, a folder that holds one, or a GGUF.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = c_path(path.as_ref())?;
        let mut ptr = null_mut();
        // SAFETY: both pointers are valid.
        check(unsafe { sys::dsv2_tokenizer_open(path.as_ptr(), &mut ptr) })?;
        let ptr = NonNull::new(ptr).expect("the library gave a tokenizer");
        Ok(Tokenizer { handle: Arc::new(Handle { ptr, model: None }) })
    }

    pub(crate) fn of_model(ptr: NonNull<sys::dsv2_tokenizer>, model: Arc<ModelHandle>) -> Tokenizer {
        Tokenizer { handle: Arc::new(Handle { ptr, model: Some(model) }) }
    }

    fn ptr(&self) -> *const sys::dsv2_tokenizer {
        self.handle.ptr.as_ptr()
    }

    /// Encodes text or bytes. Text that spells a special token is encoded as plain characters.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        self.encode_with(text.as_ref(), 0)
    }

    /// Encodes text after the beginning-of-sequence token.
    pub fn encode_first(&self, text: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        self.encode_with(text.as_ref(), sys::dsv2_encode_flags::DSV2_ENCODE_BOS.0)
    }

    /// Encodes text in which spelled special tokens become those tokens: only for text that you wrote yourself.
    pub fn encode_special(&self, text: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        self.encode_with(text.as_ref(), sys::dsv2_encode_flags::DSV2_ENCODE_SPECIAL.0)
    }

    /// Encodes a long text, after the beginning-of-sequence token if `first`, with spelled special tokens if `special`.
    /// `progress` is called now and then; `Break` cancels, which gives [`crate::Status::Cancelled`].
    pub fn encode_watched(
        &self,
        text: impl AsRef<[u8]>,
        first: bool,
        special: bool,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<i32>> {
        let text = text.as_ref();
        let flags = if first { sys::dsv2_encode_flags::DSV2_ENCODE_BOS.0 } else { 0 }
            | if special { sys::dsv2_encode_flags::DSV2_ENCODE_SPECIAL.0 } else { 0 };
        let mut tokens = vec![0; 2 * text.len() + 1];
        let mut n = 0;
        with_progress(Some(progress), |callback, user| {
            let (data, buffer) = (text.as_ptr() as *const c_char, tokens.as_mut_ptr());
            // SAFETY: all pointers are valid during the call, and the buffer has the capacity that it is said to have.
            unsafe {
                sys::dsv2_tokenizer_encode_watched(
                    self.ptr(),
                    data,
                    text.len(),
                    flags,
                    callback,
                    user,
                    buffer,
                    tokens.len(),
                    &mut n,
                )
            }
        })?;
        tokens.truncate(n);
        Ok(tokens)
    }

    fn encode_with(&self, text: &[u8], flags: u32) -> Result<Vec<i32>> {
        fill(|tokens, capacity, n| {
            // SAFETY: the buffer has the capacity that it is said to have.
            unsafe {
                sys::dsv2_tokenizer_encode(self.ptr(), text.as_ptr() as *const c_char, text.len(), flags, tokens, capacity, n)
            }
        })
    }

    /// Decodes tokens; bytes that are no UTF-8 become U+FFFD. Special tokens give nothing.
    pub fn decode(&self, tokens: &[i32]) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.decode_bytes(tokens)?).into_owned())
    }

    /// Decodes tokens to the bytes that they stand for. Special tokens give nothing.
    pub fn decode_bytes(&self, tokens: &[i32]) -> Result<Vec<u8>> {
        self.decode_with(tokens, 0)
    }

    /// Decodes tokens to bytes, special tokens as their spelling.
    pub fn decode_special(&self, tokens: &[i32]) -> Result<Vec<u8>> {
        self.decode_with(tokens, sys::dsv2_decode_flags::DSV2_DECODE_SPECIAL.0)
    }

    fn decode_with(&self, tokens: &[i32], flags: u32) -> Result<Vec<u8>> {
        fill(|text: *mut u8, capacity, size| {
            // SAFETY: the buffer has the capacity that it is said to have.
            unsafe {
                sys::dsv2_tokenizer_decode(self.ptr(), tokens.as_ptr(), tokens.len(), flags, text as *mut c_char, capacity, size)
            }
        })
    }

    /// The bytes of one token; special tokens give their spelling.
    pub fn token_bytes(&self, token: i32) -> Result<&[u8]> {
        let (mut bytes, mut size) = (std::ptr::null(), 0);
        // SAFETY: the bytes are the tokenizer's, which never changes and which self keeps open.
        unsafe {
            check(sys::dsv2_token_text(self.ptr(), token, &mut bytes, &mut size))?;
            Ok(if size == 0 { &[] } else { std::slice::from_raw_parts(bytes as *const u8, size) })
        }
    }

    /// The token with exactly this spelling, special tokens included.
    pub fn find(&self, text: impl AsRef<[u8]>) -> Result<Option<i32>> {
        let (text, mut token) = (text.as_ref(), -1);
        // SAFETY: the text is as long as it is said to be.
        check(unsafe { sys::dsv2_tokenizer_find(self.ptr(), text.as_ptr() as *const c_char, text.len(), &mut token) })?;
        Ok(token_id(token))
    }

    /// The prompt after which a model writes the next message, in the words of the checkpoint's chat template. Messages before
    /// index `first` count as already fed.
    pub fn encode_chat(&self, messages: &[Message<'_>], first: usize) -> Result<Vec<i32>> {
        self.encode_prompt(&Chat { messages, first, ..Chat::default() })
    }

    /// As `encode_chat`, for conversations with tools, parts, open replies and variables of the template.
    pub fn encode_prompt(&self, chat: &Chat<'_>) -> Result<Vec<i32>> {
        let roles = chat.messages.iter().map(|m| c_string(m.role, "a role")).collect::<Result<Vec<_>>>()?;
        let plain: Vec<_> = chat
            .messages
            .iter()
            .zip(&roles)
            .map(|(message, role)| sys::dsv2_message {
                role: role.as_ptr(),
                content: message.content.as_ptr() as *const c_char,
                content_size: message.content.len(),
            })
            .collect();
        let json = |text: Option<&str>, what| text.map(|text| c_string(text, what)).transpose();
        let (messages_json, tools) = (json(chat.messages_json, "messages_json")?, json(chat.tools, "tools")?);
        let variables = json(chat.variables, "variables")?;
        let of = |text: &Option<CString>| text.as_ref().map_or(null(), |text| text.as_ptr());
        let flag = |is_set, flag: sys::dsv2_chat_flags| if is_set { flag.0 } else { 0 };
        let flags =
            flag(chat.open, sys::dsv2_chat_flags::DSV2_CHAT_OPEN) | flag(chat.unclosed, sys::dsv2_chat_flags::DSV2_CHAT_UNCLOSED);
        let raw = sys::dsv2_chat {
            struct_size: size_of::<sys::dsv2_chat>(),
            messages: if plain.is_empty() { null() } else { plain.as_ptr() },
            n: plain.len(),
            first: chat.first,
            flags,
            messages_json: of(&messages_json),
            tools: of(&tools),
            variables: of(&variables),
            now: 0,
        };
        fill(|tokens, capacity, n| {
            // SAFETY: all that the structure points to lives during the call; the buffer has the capacity that it is said to have.
            unsafe { sys::dsv2_chat_prompt(self.ptr(), &raw, tokens, capacity, n) }
        })
    }

    /// The text of the checkpoint's chat template; `None`: it has none, or one that is no UTF-8.
    pub fn chat_template(&self) -> Option<&str> {
        let (mut bytes, mut size) = (null(), 0);
        // SAFETY: the text is the tokenizer's, which lives as long as the reference to it.
        let text = unsafe {
            if sys::dsv2_chat_template(self.ptr(), &mut bytes, &mut size) != sys::dsv2_status::DSV2_OK || size == 0 {
                return None;
            }
            std::slice::from_raw_parts(bytes as *const u8, size)
        };
        std::str::from_utf8(text).ok()
    }

    /// The prompt for filling in what is between a prefix and a suffix.
    pub fn encode_fim(&self, prefix: impl AsRef<[u8]>, suffix: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        let (prefix, suffix) = (prefix.as_ref(), suffix.as_ref());
        fill(|tokens, capacity, n| {
            // SAFETY: the texts are as long as they are said to be, the buffer has the capacity that it is said to have.
            unsafe {
                sys::dsv2_fim_encode(
                    self.ptr(),
                    prefix.as_ptr() as *const c_char,
                    prefix.len(),
                    suffix.as_ptr() as *const c_char,
                    suffix.len(),
                    tokens,
                    capacity,
                    n,
                )
            }
        })
    }

    /// The facts about the tokenizer.
    pub fn info(&self) -> TokenizerInfo {
        // SAFETY: zero is a valid value of every field; the tokenizer is open.
        let info = unsafe {
            let mut info: sys::dsv2_tokenizer_info = std::mem::zeroed();
            info.struct_size = size_of::<sys::dsv2_tokenizer_info>();
            let status = sys::dsv2_tokenizer_get_info(self.ptr(), &mut info);
            debug_assert_eq!(status, sys::dsv2_status::DSV2_OK);
            info
        };
        TokenizerInfo {
            vocab_size: info.vocab_size,
            n_merges: info.n_merges,
            n_special: info.n_special,
            bos_token_id: token_id(info.bos_token_id),
            eos_token_id: token_id(info.eos_token_id),
            fim_begin_id: token_id(info.fim_begin_id),
            fim_hole_id: token_id(info.fim_hole_id),
            fim_end_id: token_id(info.fim_end_id),
            chat_form: text(&info.chat_form),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("info", &self.info()).finish()
    }
}
