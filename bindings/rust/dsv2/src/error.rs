use crate::sys;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::{fmt, io};

mirror! {
    /// What kind of failure it was.
    Status: dsv2_status {
        /// No failure.
        Ok = DSV2_OK,
        /// An argument is outside what the function takes.
        Argument = DSV2_ERROR_ARGUMENT,
        /// The system, or the limit set for the model, gives no more memory or threads.
        Memory = DSV2_ERROR_MEMORY,
        /// A file cannot be opened, read or written.
        Io = DSV2_ERROR_IO,
        /// A file is damaged or not what it says it is.
        Format = DSV2_ERROR_FORMAT,
        /// Well formed, but of a kind that this version of the library does not run.
        Unsupported = DSV2_ERROR_UNSUPPORTED,
        /// The session is in use by another call.
        Busy = DSV2_ERROR_BUSY,
        /// A [`Canceller`](crate::Canceller) or a callback stopped the call, or a callback panicked.
        Cancelled = DSV2_ERROR_CANCELLED,
        /// The tokens do not fit into the session's maximum length.
        Full = DSV2_ERROR_FULL,
        /// A snapshot or session belongs to another model.
        Mismatch = DSV2_ERROR_MISMATCH,
        /// A session that was fed nothing since it was opened or rewound has no logits and draws no token.
        State = DSV2_ERROR_STATE,
        /// A buffer is too small.
        Buffer = DSV2_ERROR_BUFFER,
    }
}

/// A failed call. It leaves what it was to change as it was.
#[derive(Debug)]
pub struct Error {
    status: Status,
    message: String,
    source: Option<io::Error>,
}

/// What calls return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Error { status, message: message.into(), source: None }
    }

    pub(crate) fn from_io(source: io::Error) -> Self {
        Error { status: Status::Io, message: source.to_string(), source: Some(source) }
    }

    /// What kind of failure it was.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What failed, where, and what to do, in the library's words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Turns a status into a result, with this thread's last message.
pub(crate) fn check(status: sys::dsv2_status) -> Result<()> {
    if status == sys::dsv2_status::DSV2_OK {
        return Ok(());
    }
    // SAFETY: the message is valid until this thread's next failing call.
    let message = unsafe { CStr::from_ptr(sys::dsv2_last_error()) }.to_string_lossy().into_owned();
    Err(Error::new(Status::from_raw(status).unwrap_or(Status::Unsupported), message))
}

pub(crate) fn c_string(text: impl Into<Vec<u8>>, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(Status::Argument, format!("{what} contains a NUL character")))
}

pub(crate) fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    c_string(path.as_os_str().as_bytes(), "a path")
}

/// Asks a function of the form (buffer, capacity, &mut size) for the size, then for the content.
pub(crate) fn fill<T: Clone + Default>(call: impl Fn(*mut T, usize, *mut usize) -> sys::dsv2_status) -> Result<Vec<T>> {
    let mut size = 0;
    check(call(std::ptr::null_mut(), 0, &mut size))?;
    let mut content = vec![T::default(); size];
    if size > 0 {
        check(call(content.as_mut_ptr(), content.len(), &mut size))?;
        content.truncate(size);
    }
    Ok(content)
}

/// The text in one of the library's fixed arrays.
pub(crate) fn text(array: &[std::os::raw::c_char]) -> String {
    let bytes: Vec<u8> = array.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
