//! The checker against sets made here.
