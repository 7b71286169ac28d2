//! Randomized and low-rank factorizations on faer.
