//! Raw bindings to libdsv2: the public C headers, as bindgen reads them. The safe crate is `dsv2`.
//!
//! Enumerations are newtypes over their integer, since a newer library may return values that these headers do not have.
//! The contracts of all functions are in the headers, `dsv2/dsv2.h` and what it includes.
#![allow(non_camel_case_types, non_upper_case_globals, missing_docs)]

include!("bindings.rs");
