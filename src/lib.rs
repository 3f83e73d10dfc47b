//! Trimtab carries a configuration change into a running process.
//!
//! # Theory of operation
//!
//! ```text
//! source → snapshot → render → validate → publish → reload → confirm
//! ```
//!
//! Each [`source`] reports what it sees: ConfigMaps and Secrets from the API server, or directories and files that a
//! volume mounts. [`source::Sources`] decides what that means; [`source::feed`] gives a snapshot once every source is
//! known. [`render::Inputs`] are the snapshot and all else that rendering depends on; their digest identifies a change.
//!
//! [`render`] is pure: the same inputs give the same [`model::tree`] of files, or an error that names template and line.
//! A [`candidate`] is that tree in a fresh directory of the output, where no reader sees it, once it has passed what
//! `--syntax` and `--validate` ask of it. [`publish`] makes it the current generation by one rename, as the kubelet does
//! for a mounted volume. The [`model::journal`] beside it says, before the rename, that a reload is due. [`reload`]
//! notifies the main process (a signal by pidfd, HTTP, a program), and [`reload::confirm`] finds out whether it took the
//! generation. What it does not take is rolled back: the last good generation is made current by the same rename, and
//! reloaded and confirmed like any other.
//!
//! The [`machine`], a pure function from events to effects, decides what to do when, and what a journal found after a
//! crash means. [`app`] carries the effects out.
//!
//! `ARCHITECTURE.md` says what each room does and where to add a part.

// What the user types.
pub mod cli;

// The way of a change.
pub mod archive;
pub mod candidate;
pub mod publish;
pub mod reload;
pub mod render;
pub mod source;

// What decides, and what carries out.
pub mod app;
pub mod machine;
pub mod rollout;

// What others see.
pub mod observe;

// What comes before it runs.
pub mod inject;

// What several rooms need.
pub mod model;
pub mod net;
pub mod os;

#[cfg(test)]
mod rooms;
