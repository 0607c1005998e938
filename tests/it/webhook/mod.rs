//! The webhook edge: what providers post over HTTP, and what they are answered.

mod addresses;
mod answers;
mod attacks;
mod bodies;
mod edge;
mod load;
mod trouble;
