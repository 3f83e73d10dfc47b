//! Trimtab carries a configuration change into a running process.
//!
//! # Theory of operation
//!
//! ```text
//! source → snapshot → render → validate → publish → reload → confirm
//! ```
//!
//! Each [`source`] tells what it sees: ConfigMaps and Secrets from the API server, or directories and files that a
//! volume mounts. [`source::Sources`] decides what that means, and gives a snapshot once every source is known. The
//! [`render::Inputs`] are the snapshot and all else that rendering depends on; their digest is the identity of a change.
//!
//! [`render`] is pure: the same inputs give the same [`model::tree`] of files, or a rejection that names template and line.
//! A [`candidate`] is that tree in a fresh directory of the output, where no reader sees it, once it has passed what
//! `--syntax` and `--validate` ask of it. [`publish`] wrote and synced it, and makes it the current generation by one rename, as the
//! kubelet does for a mounted volume. The [`model::journal`] beside it says, before the rename, that a reload will be owed.
//! [`reload`] then tells the main process (a signal by pidfd, HTTP, a program), [`reload::confirm`] looks whether it took it,
//! and the journal is told so. What it does not take is rolled back: the last good generation is journalled as owed, made
//! current by the same rename, and told and confirmed like any other.
//!
//! What to do when is decided by the [`machine`], a pure function from events to effects, which also says what a
//! journal found after a crash means. [`app`] carries the effects out, and is the only module that knows all others.
//!
//! `ARCHITECTURE.md` says what each room does and where to add a part.

// What the user types.
pub mod cli;

// The way of a change.
pub mod candidate;
pub mod publish;
pub mod reload;
pub mod render;
pub mod source;

// What decides, and what carries out.
pub mod app;
pub mod machine;

// What others see.
pub mod observe;

// What several rooms need.
pub mod model;
pub mod net;
pub mod os;
