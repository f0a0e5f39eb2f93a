//! Rust closures under C callbacks. A panic must not unwind into C: it is caught, the callback returns "cancel", and the call
//! at work returns the panic's message as its error.

use crate::error::{check, Error, Result, Status};
use crate::sys;
use std::any::Any;
use std::ffi::CStr;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::raw::{c_char, c_int, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::Mutex;

mirror! {
    /// What a progress report is about.
    Phase: dsv2_phase {
        /// Opening a model; tensors are counted.
        Open = DSV2_PHASE_OPEN,
        /// Feeding tokens; tokens times layers are counted.
        Prompt = DSV2_PHASE_PROMPT,
        /// Writing a pack; bytes of weights are counted.
        Pack = DSV2_PHASE_PACK,
        /// Checking checksums; bytes are counted.
        Verify = DSV2_PHASE_VERIFY,
        /// Writing a snapshot; tokens are counted.
        Save = DSV2_PHASE_SAVE,
        /// Reading a snapshot; tokens are counted.
        Restore = DSV2_PHASE_RESTORE,
        /// Encoding a text; bytes are counted.
        Encode = DSV2_PHASE_ENCODE,
    }
}

mirror! {
    /// How much a remark of the library matters.
    LogLevel: dsv2_log_level {
        /// Something may not be as you expect.
        Warning = DSV2_LOG_WARNING,
        /// Good to know.
        Info = DSV2_LOG_INFO,
    }
}

/// A progress report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is about.
    pub phase: Phase,
    /// How much is done; never falls.
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// What a callback left for the call to report.
#[derive(Default)]
pub(crate) struct Failure(Option<Error>);

impl Failure {
    /// Runs a closure that C called; a panic is kept, and None returned.
    fn guard<T>(&mut self, what: &str, call: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(value) => Some(value),
            Err(payload) => {
                self.0.get_or_insert_with(|| panicked(what, &*payload));
                // A payload may panic again while it is dropped.
                let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
                None
            }
        }
    }

    /// The result of a call: what a callback left, or the status.
    pub(crate) fn check(&mut self, status: sys::dsv2_status) -> Result<()> {
        match self.0.take() {
            Some(failure) => Err(failure),
            None => check(status),
        }
    }
}

fn panicked(what: &str, payload: &(dyn Any + Send)) -> Error {
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::new(Status::Cancelled, format!("the {what} callback panicked: {message}"))
}

/// A progress closure and what became of it; its address is the C callback's user pointer.
pub(crate) struct ProgressRelay<F: ?Sized> {
    pub(crate) failure: Failure,
    pub(crate) call: F,
}

/// A progress closure that a call borrows.
pub(crate) type ProgressFn<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

impl<F: FnMut(Progress) -> ControlFlow<()>> ProgressRelay<F> {
    pub(crate) fn new(call: F) -> Self {
        ProgressRelay { failure: Failure::default(), call }
    }

    pub(crate) fn user(&mut self) -> *mut c_void {
        self as *mut Self as *mut c_void
    }

    /// # Safety
    /// `user` comes from [`ProgressRelay::user`] of a relay of this type that lives and is not used otherwise meanwhile.
    pub(crate) unsafe extern "C" fn callback(user: *mut c_void, phase: sys::dsv2_phase, done: u64, total: u64) -> c_int {
        // SAFETY: as this function demands.
        let relay = unsafe { &mut *(user as *mut Self) };
        let call = &mut relay.call;
        let phase = match Phase::from_raw(phase) {
            Some(phase) => phase,
            None => return 0,
        };
        match relay.failure.guard("progress", || call(Progress { phase, done, total })) {
            Some(ControlFlow::Continue(())) => 0,
            Some(ControlFlow::Break(())) | None => 1,
        }
    }
}

/// A value in the heap whose address C holds as long as its owner says. (A Box must not move while such a pointer is used.)
pub(crate) struct Fixed<T>(NonNull<T>);

// SAFETY: it owns its content.
unsafe impl<T: Send> Send for Fixed<T> {}

impl<T> Fixed<T> {
    pub(crate) fn new(content: T) -> Self {
        Fixed(NonNull::from(Box::leak(Box::new(content))))
    }

    /// The callback's user pointer.
    pub(crate) fn user(&self) -> *mut c_void {
        self.0.as_ptr() as *mut c_void
    }

    /// The content, while no call of C is at work on it.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        // SAFETY: it is alive and ours.
        unsafe { self.0.as_mut() }
    }

    pub(crate) fn get(&self) -> &T {
        // SAFETY: it is alive and ours.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: it came from a Box and nothing can use it any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A log closure.
pub(crate) type LogFn = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// A log closure, which any thread may call, and what became of it.
pub(crate) struct LogRelay {
    pub(crate) call: LogFn,
    pub(crate) failure: Mutex<Failure>,
}

impl LogRelay {
    /// # Safety
    /// `user` points to a living `LogRelay`.
    pub(crate) unsafe extern "C" fn callback(user: *mut c_void, level: sys::dsv2_log_level, message: *const c_char) {
        // SAFETY: as this function demands; the message is valid during the call.
        let (relay, message) = unsafe { (&*(user as *const LogRelay), CStr::from_ptr(message)) };
        let level = LogLevel::from_raw(level).unwrap_or(LogLevel::Info);
        let mut failure = Failure::default();
        failure.guard("log", || (relay.call)(level, &message.to_string_lossy()));
        if let (Some(error), Ok(mut kept)) = (failure.0, relay.failure.lock()) {
            kept.0.get_or_insert(error);
        }
    }
}

/// A writer or reader that a call borrows.
pub(crate) struct StreamRelay<'a, S: ?Sized> {
    pub(crate) stream: &'a mut S,
    pub(crate) failure: Failure,
}

impl<'a, S: Write + 'a> StreamRelay<'a, S> {
    /// # Safety
    /// `user` points to a living relay of this type; `data` to `size` bytes.
    pub(crate) unsafe extern "C" fn write(user: *mut c_void, data: *const c_void, size: usize) -> c_int {
        if size == 0 {
            return 0;
        }
        // SAFETY: as this function demands.
        let (relay, data) = unsafe { (&mut *(user as *mut Self), std::slice::from_raw_parts(data as *const u8, size)) };
        let stream = &mut *relay.stream;
        match relay.failure.guard("write", || stream.write_all(data)) {
            Some(Ok(())) => 0,
            Some(Err(failure)) => {
                relay.failure.0.get_or_insert(Error::from_io(failure));
                1
            }
            None => 1,
        }
    }
}

impl<'a, S: Read + 'a> StreamRelay<'a, S> {
    /// # Safety
    /// `user` points to a living relay of this type; `data` to room for `size` bytes; `got` to a count.
    pub(crate) unsafe extern "C" fn read(user: *mut c_void, data: *mut c_void, size: usize, got: *mut usize) -> c_int {
        // SAFETY: as this function demands. A reader may look at its buffer, so the buffer must hold something.
        let (relay, data, got) = unsafe {
            if size > 0 {
                std::ptr::write_bytes(data as *mut u8, 0, size);
            }
            let data = if size > 0 { std::slice::from_raw_parts_mut(data as *mut u8, size) } else { &mut [] };
            (&mut *(user as *mut Self), data, &mut *got)
        };
        let stream = &mut *relay.stream;
        let read = relay.failure.guard("read", || loop {
            match stream.read(data) {
                Err(failure) if failure.kind() == std::io::ErrorKind::Interrupted => continue,
                other => return other,
            }
        });
        match read {
            // A wrong implementation of Read may claim more than there was room for.
            Some(Ok(n)) if n <= size => {
                *got = n;
                0
            }
            Some(Ok(_)) => {
                relay.failure.0.get_or_insert(Error::new(Status::Io, "the reader returned more than it was asked for"));
                1
            }
            Some(Err(failure)) => {
                relay.failure.0.get_or_insert(Error::from_io(failure));
                1
            }
            None => 1,
        }
    }
}

/// A routing trace closure; see [`Session::set_routing_trace`](crate::Session::set_routing_trace).
pub(crate) struct TraceRelay {
    pub(crate) call: Box<dyn FnMut(&crate::RoutingEvent<'_>) + Send>,
    pub(crate) failure: Failure,
    pub(crate) session: *mut sys::dsv2_session,
}

impl TraceRelay {
    /// # Safety
    /// `user` points to a living relay that is not used otherwise meanwhile; `event` is valid during the call.
    pub(crate) unsafe extern "C" fn callback(user: *mut c_void, event: *const sys::dsv2_routing_event) {
        // SAFETY: as this function demands.
        let (relay, event) = unsafe { (&mut *(user as *mut TraceRelay), &*event) };
        if relay.failure.0.is_some() {
            return;
        }
        let n = event.n_experts as usize;
        // SAFETY: both arrays have n_experts entries.
        let (experts, gates) =
            unsafe { (std::slice::from_raw_parts(event.experts, n), std::slice::from_raw_parts(event.gates, n)) };
        let event = crate::RoutingEvent { position: event.position, layer: event.layer, experts, gates, groups: event.groups };
        let call = &mut relay.call;
        if relay.failure.guard("trace", || call(&event)).is_none() {
            // SAFETY: the session is open: it is calling. A trace has no result to cancel with.
            unsafe { sys::dsv2_session_cancel(relay.session) };
        }
    }
}
