//! Open buckets, rule by rule, and against a naive twin.
