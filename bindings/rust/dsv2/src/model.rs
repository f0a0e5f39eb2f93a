use crate::callback::{Failure, Fixed, LogFn, LogRelay, ProgressFn, ProgressRelay};
use crate::error::{c_path, c_string, check, text, Result};
use crate::{sys, LogLevel, Progress, Routing, RoutingTokens, Session, SessionOptions, Tokenizer};
use std::mem::size_of;
use std::ops::ControlFlow;
use std::os::raw::c_void;
use std::path::Path;
use std::ptr::{null, null_mut, NonNull};
use std::sync::{Arc, Mutex};

mirror! {
    // The items are written by tests/house/weight_types.py.
    /// Element type of weights, as stored or as asked for.
    WeightType: dsv2_weight_type {
        /// Keep each tensor's type.
        AsStored = DSV2_WEIGHTS_AS_STORED,
        /// 32-bit floating point.
        F32 = DSV2_WEIGHTS_F32,
        /// 16-bit floating point, IEEE.
        F16 = DSV2_WEIGHTS_F16,
        /// bfloat16.
        Bf16 = DSV2_WEIGHTS_BF16,
        /// 8-bit floating point with scales per block.
        F8E4M3 = DSV2_WEIGHTS_F8_E4M3,
        /// 8 bits with a scale per 32.
        Q8_0 = DSV2_WEIGHTS_Q8_0,
        /// 6 bits in super-blocks.
        Q6K = DSV2_WEIGHTS_Q6_K,
        /// 5 bits in super-blocks.
        Q5K = DSV2_WEIGHTS_Q5_K,
        /// 4 bits in super-blocks.
        Q4K = DSV2_WEIGHTS_Q4_K,
        /// 4 bits with a scale per 32.
        Q4_0 = DSV2_WEIGHTS_Q4_0,
        /// Tensors of several types; in [`ModelInfo`] only.
        Mixed = DSV2_WEIGHTS_MIXED,
    }
}

mirror! {
    /// How weights come into memory.
    Loading: dsv2_loading {
        /// Files are mapped; where a file system refuses, they are read.
        Map = DSV2_LOADING_MAP,
        /// All weights are read; the files are closed when the model is open, and may change.
        Read = DSV2_LOADING_READ,
    }
}

/// The library's model, closed when its last user is gone.
pub(crate) struct Handle {
    pub(crate) ptr: NonNull<sys::dsv2_model>,
    pub(crate) vocab_size: usize,
    log: Option<Fixed<LogRelay>>, // the library keeps its address until the model is closed
}

// SAFETY: a dsv2_model may be used and closed from any thread; LogRelay's closure is Send + Sync.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from dsv2_model_open and nothing can use it any more.
        unsafe { sys::dsv2_model_close(self.ptr.as_ptr()) }
    }
}

/// An open model. Clones are the same model; any number of threads and sessions may use it at the same time.
///
/// ```no_run
/// # fn main() -> dsv2::Result<()> {
/// let model = dsv2::Model::options().threads(8).open("DeepSeek-V2-Lite-Chat")?;
/// println!("{} layers", model.info().num_hidden_layers);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Model {
    pub(crate) handle: Arc<Handle>,
}

/// How to open a model; made by [`Model::options`].
#[derive(Default)]
pub struct ModelOptions<'a> {
    threads: u32,
    weight_type: Option<WeightType>,
    kernels: Option<String>,
    cache_memory_limit: u64,
    loading: Option<Loading>,
    lock: bool,
    insist: bool,
    progress: Option<ProgressFn<'a>>,
    log: Option<LogFn>,
}

impl<'a> ModelOptions<'a> {
    /// Worker threads, the caller's included; 0: what the process is allowed to use.
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// A type to convert matrices to while opening.
    pub fn weight_type(mut self, weight_type: WeightType) -> Self {
        self.weight_type = Some(weight_type);
        self
    }

    /// A set of kernels by name, "c", "avx2" or "avx512", for comparisons; otherwise the best for the processor.
    pub fn kernels(mut self, name: impl Into<String>) -> Self {
        self.kernels = Some(name.into());
        self
    }

    /// Bytes that the caches of all sessions together may take; 0: no limit.
    pub fn cache_memory_limit(mut self, bytes: u64) -> Self {
        self.cache_memory_limit = bytes;
        self
    }

    /// How weights come into memory; by default files are mapped.
    pub fn loading(mut self, loading: Loading) -> Self {
        self.loading = Some(loading);
        self
    }

    /// Keeps the weights in memory; an error of [`crate::Status::Memory`] with the limit where the system refuses.
    pub fn lock(mut self, lock: bool) -> Self {
        self.lock = lock;
        self
    }

    /// Opens the model even if what is copied (or, with `lock`, also mapped) does not fit the memory that is left.
    pub fn insist(mut self, insist: bool) -> Self {
        self.insist = insist;
        self
    }

    /// Called now and then while the model is opened; `ControlFlow::Break` cancels.
    pub fn progress(mut self, call: &'a mut dyn FnMut(Progress) -> ControlFlow<()>) -> Self {
        self.progress = Some(call);
        self
    }

    /// Receives remarks that are no errors, as long as the model is open.
    pub fn log(mut self, call: impl Fn(LogLevel, &str) + Send + Sync + 'static) -> Self {
        self.log = Some(Box::new(call));
        self
    }

    /// What opening the model at `path` with these options would take. Reads headers and the configuration alone.
    pub fn bytes_needed(&self, path: impl AsRef<Path>) -> Result<BytesNeeded> {
        let path = c_path(path.as_ref())?;
        // SAFETY: zero is a valid value of every field.
        let (mut options, mut info): (sys::dsv2_model_options, sys::dsv2_bytes_needed_info) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        options.struct_size = size_of::<sys::dsv2_model_options>();
        options.weight_type = self.weight_type.unwrap_or(WeightType::AsStored).to_raw();
        options.loading = self.loading.unwrap_or(Loading::Map).to_raw();
        info.struct_size = size_of::<sys::dsv2_bytes_needed_info>();
        // SAFETY: all pointers are valid during the call.
        check(unsafe { sys::dsv2_model_bytes_needed(path.as_ptr(), &options, &mut info) })?;
        Ok(BytesNeeded {
            bytes_copied: info.bytes_copied,
            bytes_mapped: info.bytes_mapped,
            cache_bytes_per_token: info.cache_bytes_per_token,
            memory_left: Some(info.memory_left).filter(|&bytes| bytes > 0),
        })
    }

    /// Opens the model: a folder with config.json and safetensors files, or a file that is a GGUF or a .dsv2 pack.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Model> {
        let path = c_path(path.as_ref())?;
        let kernels = self.kernels.map(|name| c_string(name, "the name of kernels")).transpose()?;
        let log = self.log.map(|call| Fixed::new(LogRelay { call, failure: Mutex::new(Failure::default()) }));
        let options = sys::dsv2_model_options {
            struct_size: size_of::<sys::dsv2_model_options>(),
            n_threads: self.threads,
            weight_type: self.weight_type.unwrap_or(WeightType::AsStored).to_raw(),
            kernels: kernels.as_ref().map_or(null(), |name| name.as_ptr()),
            cache_memory_limit: self.cache_memory_limit,
            progress: None,
            progress_user: null_mut(),
            log: log.as_ref().map(|_| LogRelay::callback as _),
            log_user: log.as_ref().map_or(null_mut(), Fixed::user),
            loading: self.loading.unwrap_or(Loading::Map).to_raw(),
            lock: self.lock.into(),
            insist: self.insist.into(),
            allocator: sys::dsv2_allocator { allocate: None, release: None, user: null_mut() },
        };
        let mut ptr = null_mut();
        with_progress(self.progress, |progress, progress_user| {
            let options = sys::dsv2_model_options { progress, progress_user, ..options };
            // SAFETY: all pointers are valid during the call, the log's until the handle is dropped.
            unsafe { sys::dsv2_model_open(path.as_ptr(), &options, &mut ptr) }
        })?;
        let ptr = NonNull::new(ptr).expect("the library gave a model");
        let mut handle = Handle { ptr, vocab_size: 0, log };
        if let Some(Ok(mut failure)) = handle.log.as_ref().map(|relay| relay.get().failure.lock()) {
            failure.check(sys::dsv2_status::DSV2_OK)?;
        }
        handle.vocab_size = raw_info(ptr).vocab_size as usize;
        Ok(Model { handle: Arc::new(handle) })
    }
}

/// Makes a call with a borrowed progress closure, or without.
pub(crate) fn with_progress(
    progress: Option<ProgressFn<'_>>,
    call: impl FnOnce(sys::dsv2_progress_fn, *mut c_void) -> sys::dsv2_status,
) -> Result<()> {
    fn typed<F: FnMut(Progress) -> ControlFlow<()>>(
        mut relay: ProgressRelay<F>,
        call: impl FnOnce(sys::dsv2_progress_fn, *mut c_void) -> sys::dsv2_status,
    ) -> Result<()> {
        let status = call(Some(ProgressRelay::<F>::callback), relay.user());
        relay.failure.check(status)
    }
    match progress {
        Some(progress) => typed(ProgressRelay::new(progress), call),
        None => check(call(None, null_mut())),
    }
}

/// The facts about an open model; names are those of the published config.json.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[allow(missing_docs)] // the names of config.json
#[non_exhaustive]
pub struct ModelInfo {
    /// All weights.
    pub parameters: u64,
    /// Weights used for one token.
    pub parameters_activated: u64,
    /// Size of the weights as held, mapped or copied.
    pub weight_bytes: u64,
    /// The part of `weight_bytes` that is copied or converted rather than mapped. Routed experts of a GGUF may be converted when
    /// first chosen.
    pub bytes_copied: u64,
    /// Of the matrices.
    pub weight_type: WeightType,
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub moe_intermediate_size: u32,
    pub num_hidden_layers: u32,
    pub num_attention_heads: u32,
    pub n_shared_experts: u32,
    pub n_routed_experts: u32,
    pub num_experts_per_tok: u32,
    pub n_group: u32,
    pub topk_group: u32,
    pub first_k_dense_replace: u32,
    pub moe_layer_freq: u32,
    pub q_lora_rank: u32,
    pub kv_lora_rank: u32,
    pub qk_nope_head_dim: u32,
    pub qk_rope_head_dim: u32,
    pub v_head_dim: u32,
    /// Context length, tokens.
    pub max_position_embeddings: u32,
    /// Threads the model uses.
    pub n_threads: u32,
    pub bos_token_id: Option<i32>,
    pub eos_token_id: Option<i32>,
    pub architecture: String,
    pub topk_method: String,
    pub scoring_func: String,
    /// "safetensors", "gguf" or "pack".
    pub container: String,
    /// The set of kernels in use.
    pub kernels: String,
    /// Equal for equal models.
    pub fingerprint: u64,
}

/// What opening a model would take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct BytesNeeded {
    /// The process's own memory for weights.
    pub bytes_copied: u64,
    /// Weights that are used where they lie in mapped files.
    pub bytes_mapped: u64,
    /// A token of a session with default options.
    pub cache_bytes_per_token: u64,
    /// What the process can take now, if known.
    pub memory_left: Option<u64>,
}

/// Memory used by a model's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemoryInfo {
    /// Pages referenced by at least one session; a shared page counts once.
    pub pages_in_use: u64,
    /// Their size in bytes.
    pub page_bytes_in_use: u64,
    /// The limit set; 0: none.
    pub page_bytes_limit: u64,
    /// Working memory of passes, kept between calls, in bytes.
    pub scratch_bytes: u64,
}

fn raw_info(ptr: NonNull<sys::dsv2_model>) -> sys::dsv2_model_info {
    // SAFETY: zero is a valid value of every field; the model is open.
    unsafe {
        let mut info: sys::dsv2_model_info = std::mem::zeroed();
        info.struct_size = size_of::<sys::dsv2_model_info>();
        let status = sys::dsv2_model_get_info(ptr.as_ptr(), &mut info);
        debug_assert_eq!(status, sys::dsv2_status::DSV2_OK);
        info
    }
}

/// An id, or None for the library's -1.
pub(crate) fn token_id(id: i32) -> Option<i32> {
    Some(id).filter(|&id| id >= 0)
}

impl Model {
    /// Opens a model with the default options.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Model::options().open(path)
    }

    /// The options to open a model with.
    pub fn options<'a>() -> ModelOptions<'a> {
        ModelOptions::default()
    }

    /// Opens an empty session with the default options.
    pub fn session(&self) -> Result<Session> {
        Session::open(self, &SessionOptions::default())
    }

    /// The facts about the model.
    pub fn info(&self) -> ModelInfo {
        let info = raw_info(self.handle.ptr);
        ModelInfo {
            parameters: info.parameters,
            parameters_activated: info.parameters_activated,
            weight_bytes: info.weight_bytes,
            bytes_copied: info.bytes_copied,
            weight_type: WeightType::from_raw(info.weight_type).unwrap_or(WeightType::Mixed),
            vocab_size: info.vocab_size,
            hidden_size: info.hidden_size,
            intermediate_size: info.intermediate_size,
            moe_intermediate_size: info.moe_intermediate_size,
            num_hidden_layers: info.num_hidden_layers,
            num_attention_heads: info.num_attention_heads,
            n_shared_experts: info.n_shared_experts,
            n_routed_experts: info.n_routed_experts,
            num_experts_per_tok: info.num_experts_per_tok,
            n_group: info.n_group,
            topk_group: info.topk_group,
            first_k_dense_replace: info.first_k_dense_replace,
            moe_layer_freq: info.moe_layer_freq,
            q_lora_rank: info.q_lora_rank,
            kv_lora_rank: info.kv_lora_rank,
            qk_nope_head_dim: info.qk_nope_head_dim,
            qk_rope_head_dim: info.qk_rope_head_dim,
            v_head_dim: info.v_head_dim,
            max_position_embeddings: info.max_position_embeddings,
            n_threads: info.n_threads,
            bos_token_id: token_id(info.bos_token_id),
            eos_token_id: token_id(info.eos_token_id),
            architecture: text(&info.architecture),
            topk_method: text(&info.topk_method),
            scoring_func: text(&info.scoring_func),
            container: text(&info.container),
            kernels: text(&info.kernels),
            fingerprint: info.fingerprint,
        }
    }

    /// Memory used by the model's sessions at this moment.
    pub fn memory(&self) -> Result<MemoryInfo> {
        // SAFETY: zero is a valid value of every field; the model is open.
        let info = unsafe {
            let mut info: sys::dsv2_memory_info = std::mem::zeroed();
            info.struct_size = size_of::<sys::dsv2_memory_info>();
            check(sys::dsv2_model_get_memory(self.handle.ptr.as_ptr(), &mut info))?;
            info
        };
        Ok(MemoryInfo {
            pages_in_use: info.pages_in_use,
            page_bytes_in_use: info.page_bytes_in_use,
            page_bytes_limit: info.page_bytes_limit,
            scratch_bytes: info.scratch_bytes,
        })
    }

    /// The tokens that end a text; the first is [`ModelInfo::eos_token_id`].
    pub fn end_tokens(&self) -> &[i32] {
        let (mut tokens, mut n) = (null(), 0);
        // SAFETY: the model is open, and owns the tokens as long as it is.
        unsafe {
            let status = sys::dsv2_model_end_tokens(self.handle.ptr.as_ptr(), &mut tokens, &mut n);
            assert_eq!(status, sys::dsv2_status::DSV2_OK, "the model is open");
            std::slice::from_raw_parts(tokens, n)
        }
    }

    /// The model's own tokenizer; an error of [`crate::Status::Unsupported`], with the reason, if it has none or none that can
    /// be used.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        // SAFETY: the model is open.
        let ptr = unsafe { sys::dsv2_model_tokenizer(self.handle.ptr.as_ptr()) };
        match NonNull::new(ptr as *mut sys::dsv2_tokenizer) {
            Some(ptr) => Ok(Tokenizer::of_model(ptr, self.handle.clone())),
            None => Err(check(sys::dsv2_status::DSV2_ERROR_UNSUPPORTED).unwrap_err()),
        }
    }

    /// Copies the counts of expert use of all the model's sessions, closed ones included.
    pub fn routing(&self, tokens: RoutingTokens) -> Result<Routing> {
        let mut ptr = null_mut();
        // SAFETY: the model is open.
        check(unsafe { sys::dsv2_model_routing(self.handle.ptr.as_ptr(), tokens.to_raw(), &mut ptr) })?;
        Ok(Routing::own(ptr))
    }

    /// Sets the model's counts (not those of its sessions) to zero.
    pub fn reset_routing(&self) -> Result<()> {
        // SAFETY: the model is open.
        check(unsafe { sys::dsv2_model_routing_reset(self.handle.ptr.as_ptr()) })
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("info", &self.info()).finish()
    }
}

/// Writes the model at `path` as one .dsv2 file with weights in the kernels' own layout.
pub fn pack(
    path: impl AsRef<Path>,
    output: impl AsRef<Path>,
    weight_type: WeightType,
    threads: u32,
    progress: Option<&mut dyn FnMut(Progress) -> ControlFlow<()>>,
) -> Result<()> {
    let (path, output) = (c_path(path.as_ref())?, c_path(output.as_ref())?);
    with_progress(progress, |progress, progress_user| {
        let options = sys::dsv2_pack_options {
            struct_size: size_of::<sys::dsv2_pack_options>(),
            weight_type: weight_type.to_raw(),
            n_threads: threads,
            progress,
            progress_user,
        };
        // SAFETY: all pointers are valid during the call.
        unsafe { sys::dsv2_model_pack(path.as_ptr(), output.as_ptr(), &options) }
    })
}

/// Reads a whole pack and checks every checksum.
pub fn verify(path: impl AsRef<Path>, progress: Option<&mut dyn FnMut(Progress) -> ControlFlow<()>>) -> Result<()> {
    let path = c_path(path.as_ref())?;
    with_progress(progress, |callback, user| {
        // SAFETY: all pointers are valid during the call.
        unsafe { sys::dsv2_model_verify(path.as_ptr(), callback, user) }
    })
}
