//! The rollout's protocol in simulated fleets: named and random schedules, and every order of events for small fleets.
//!
//! The contract itself is `protocol.py`.
//!
//! `TRIMTAB_ROLLOUT_STEPS=100000000` asks for more random steps, `TRIMTAB_ROLLOUT_SEED=N` for other ones (a schedule that
//! fails is printed with its seed, made as small as it goes), `TRIMTAB_ROLLOUT_ALL=1` for all fleets of the exhaustive
//! search. With `--release`, both are ten times as fast.

mod contract; // the rules beside the contract
mod exhaust; // each order of events, without time
mod properties; // what must hold
mod schedules; // named schedules, random ones, and the smallest that fails
mod world; // clocks, requests, Pods, people
