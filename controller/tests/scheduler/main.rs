//! The scheduler core against models, exhaustively, and in virtual time.

mod cases;
mod exhaustive;
mod model;
mod random;
mod resources;
mod script;
mod simulation;
