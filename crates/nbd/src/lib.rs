//! The network block device protocol: a server for any [`brigade_env::BlockDevice`], and a client.
//!
//! # Shape
//! What decides is synchronous and knows no stream: [`handshake`] turns the bytes of the option haggling into replies,
//! [`request`] turns 28 bytes into a checked action, [`proto`] holds the numbers and encodes headers. What waits sits
//! around it: [`server`] accepts, `connection` moves bytes, [`client`] and [`load`] are the other end of the wire.
//!
//! # What makes it fast
//! One receive takes up to 124 KiB and with it many requests. A request is polled once where it was parsed and becomes
//! a task only if it has to wait. Finished replies queue up, and the connection's writer, woken once for all of them,
//! sends up to 64 in one call: a deep queue pays for one system call, not for sixty-four.
//!
//! # Bounds
//! - (NBD-1) An option is at most 64 KiB, a payload at most 32 MiB; longer ones are skipped or end the connection.
//! - (NBD-2) A request counts against its connection's limits, in requests and in bytes, from before its buffer is made
//!   until its reply has been sent. At the limit nothing more is received.
//! - (NBD-3) A handshake has a deadline; so has the end of a connection.
//! - (NBD-4) No bytes from the wire can panic: every length is compared before it is used.
#![forbid(unsafe_code)]

pub mod client;
mod connection;
pub mod handshake;
mod inbox;
pub mod load;
mod outbox;
pub mod proto;
pub mod request;
pub mod server;
mod wait;

pub use client::{Client, ClientOptions};
pub use server::{ServerOptions, Shutdown, serve};
