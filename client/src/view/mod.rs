//! Views: which engines tasks go to.

mod direct;
mod imap;
mod load_balanced;

pub use direct::DirectView;
pub use imap::Imap;
pub use load_balanced::LoadBalancedView;
