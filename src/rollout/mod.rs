//! The rollout: one replica takes a change first, and the others follow when it has held. A second pure machine.
//!
//! What the fleet knows is one [`Lease`]. [`decide`] is the protocol: what a replica does with what it knows, as rules of
//! which the first that applies decides. [`Rollout`] is what surrounds it: which answer is fresh enough for what, when to
//! look again, and what became of a request whose answer was lost. No I/O, no clock, no tokio: the moment is passed in.
//!
//! The first machine learns from it *go*, *wait* and *back*, and nothing of Leases.

mod act;
mod answers;
mod decide;
mod dice;
mod driver;
pub mod history;
mod io;
mod lease;

#[cfg(test)]
mod tests;

pub use self::decide::{Action, Clock, Replica, Why, decide};
pub use self::dice::Dice;
pub use self::driver::Rollout;
pub use self::io::{Effect, Event, Found, Reply, Timing, Version};
pub use self::lease::{Lease, OF_CANDIDATE, OF_DONE, PREFIX, ParseLeaseError, Reason, State, lease_name, versions};
