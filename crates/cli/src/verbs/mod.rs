//! One file per verb.

pub mod attach;
pub mod check;
pub mod demo;
pub mod detach;
pub mod drain;
pub mod dump;
pub mod format;
pub mod gc;
pub mod pages;
pub mod serve;
pub mod set;
pub mod settings_page;
pub mod show;
pub mod status;
pub mod volume;
