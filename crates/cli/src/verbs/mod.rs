//! One file per verb.

pub mod check;
pub mod demo;
pub mod drain;
pub mod dump;
pub mod format;
pub mod gc;
pub mod pages;
pub mod serve;
pub mod show;
pub mod status;
