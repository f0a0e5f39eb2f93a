use crate::callback::{Failure, ProgressFn, StreamRelay};
use crate::error::{c_path, check, Error, Result, Status};
use crate::model::with_progress;
use crate::session::CacheType;
use crate::{sys, Progress, Session};
use std::io::{Read, Write};
use std::mem::size_of;
use std::ops::ControlFlow;
use std::os::raw::c_void;
use std::path::Path;
use std::ptr::null;

/// How to save a session.
#[derive(Default)]
pub struct SaveOptions<'a> {
    /// Add only what is new to a snapshot of this session's first tokens; for paths.
    pub append: bool,
    /// Of zstd; 0: the default.
    pub compression_level: i32,
    /// Called now and then; `ControlFlow::Break` cancels.
    pub progress: Option<&'a mut dyn FnMut(Progress) -> ControlFlow<()>>,
}

/// How to restore a session.
#[derive(Default)]
pub struct RestoreOptions<'a> {
    /// Restore only the longest prefix that the snapshot shares with these ids. Where this would be all of them, but no
    /// logits come with them, the last one is left out: feeding `prompt[n..]`, n being what the restore returns, always
    /// gives the prompt's logits.
    pub prompt: Option<&'a [i32]>,
    /// Convert a snapshot of another cache type.
    pub convert: bool,
    /// Called now and then; `ControlFlow::Break` cancels.
    pub progress: Option<&'a mut dyn FnMut(Progress) -> ControlFlow<()>>,
}

/// What a snapshot's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Of the file format.
    pub version: u32,
    /// Element type of the cache.
    pub cache_type: CacheType,
    /// Tokens held.
    pub n_tokens: u64,
    /// Of the model that the snapshot belongs to.
    pub model_fingerprint: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Size of the cache before compression.
    pub latent_bytes: u64,
}

impl SnapshotInfo {
    /// Reads the header of the snapshot at `path`, without a model.
    pub fn inspect(path: impl AsRef<Path>) -> Result<SnapshotInfo> {
        let path = c_path(path.as_ref())?;
        // SAFETY: zero is a valid value of every field; both pointers are valid.
        let info = unsafe {
            let mut info: sys::dsv2_snapshot_info = std::mem::zeroed();
            info.struct_size = size_of::<sys::dsv2_snapshot_info>();
            check(sys::dsv2_snapshot_inspect(path.as_ptr(), &mut info))?;
            info
        };
        Ok(SnapshotInfo {
            version: info.version,
            cache_type: CacheType::from_raw(info.cache_type)
                .ok_or_else(|| Error::new(Status::Unsupported, "the snapshot's cache type is not known to this crate"))?,
            n_tokens: info.n_tokens,
            model_fingerprint: info.model_fingerprint,
            file_bytes: info.file_bytes,
            latent_bytes: info.latent_bytes,
        })
    }
}

type SaveCall<'c> = &'c mut dyn FnMut(&sys::dsv2_save_options) -> sys::dsv2_status;
type RestoreCall<'c> = &'c mut dyn FnMut(&sys::dsv2_restore_options, &mut usize) -> sys::dsv2_status;

/// The error of a stream explains a failed call better than its status.
fn with_stream<T>(failure: &mut Failure, result: Result<T>) -> Result<T> {
    failure.check(sys::dsv2_status::DSV2_OK)?;
    result
}

fn save(options: SaveOptions<'_>, call: SaveCall<'_>) -> Result<()> {
    let SaveOptions { append, compression_level, progress } = options;
    with_progress(progress as Option<ProgressFn<'_>>, |progress, progress_user| {
        call(&sys::dsv2_save_options {
            struct_size: size_of::<sys::dsv2_save_options>(),
            append: append.into(),
            compression_level,
            progress,
            progress_user,
        })
    })
}

fn restore(options: RestoreOptions<'_>, call: RestoreCall<'_>) -> Result<usize> {
    let RestoreOptions { prompt, convert, progress } = options;
    let mut reused = 0;
    with_progress(progress as Option<ProgressFn<'_>>, |progress, progress_user| {
        let options = sys::dsv2_restore_options {
            struct_size: size_of::<sys::dsv2_restore_options>(),
            prompt: prompt.map_or(null(), <[i32]>::as_ptr),
            n_prompt: prompt.map_or(0, <[i32]>::len),
            convert: convert.into(),
            progress,
            progress_user,
            leave_last: prompt.is_some().into(),
        };
        call(&options, &mut reused)
    })?;
    Ok(reused)
}

impl Session {
    /// Saves to a file, which only a whole snapshot replaces.
    pub fn save(&mut self, path: impl AsRef<Path>, options: SaveOptions<'_>) -> Result<()> {
        let (path, session) = (c_path(path.as_ref())?, self.ptr());
        // SAFETY: the session is open; all pointers are valid during the call.
        save(options, &mut |options| unsafe { sys::dsv2_session_save(session, path.as_ptr(), options) })
    }

    /// Saves to a writer: the same bytes as in a file.
    pub fn save_to<W: Write>(&mut self, writer: &mut W, options: SaveOptions<'_>) -> Result<()> {
        let mut relay = StreamRelay { stream: writer, failure: Failure::default() };
        let (session, user) = (self.ptr(), &mut relay as *mut StreamRelay<'_, W> as *mut c_void);
        // SAFETY: the session is open; the relay lives and is not used otherwise during the call.
        let result = save(options, &mut |options| unsafe {
            sys::dsv2_session_save_to(session, Some(StreamRelay::<W>::write), user, options)
        });
        with_stream(&mut relay.failure, result)
    }

    /// Replaces what the session holds by what a snapshot holds, and returns the number of tokens.
    pub fn restore(&mut self, path: impl AsRef<Path>, options: RestoreOptions<'_>) -> Result<usize> {
        let (path, session) = (c_path(path.as_ref())?, self.ptr());
        // SAFETY: the session is open; all pointers are valid during the call.
        restore(options, &mut |options, reused| unsafe { sys::dsv2_session_restore(session, path.as_ptr(), options, reused) })
    }

    /// Restores from a reader, which is read once from the beginning to the end.
    pub fn restore_from<R: Read>(&mut self, reader: &mut R, options: RestoreOptions<'_>) -> Result<usize> {
        let mut relay = StreamRelay { stream: reader, failure: Failure::default() };
        let (session, user) = (self.ptr(), &mut relay as *mut StreamRelay<'_, R> as *mut c_void);
        // SAFETY: the session is open; the relay lives and is not used otherwise during the call.
        let result = restore(options, &mut |options, reused| unsafe {
            sys::dsv2_session_restore_from(session, Some(StreamRelay::<R>::read), user, options, reused)
        });
        with_stream(&mut relay.failure, result)
    }
}
