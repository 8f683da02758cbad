//! The queues against a naive twin.
