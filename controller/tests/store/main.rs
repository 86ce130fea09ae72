//! The store as its users see it: what is kept, what is answered, what survives.

mod crash;
mod faults;
mod history;
mod kit;
mod recovery;
