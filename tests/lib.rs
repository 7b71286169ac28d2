//! Tests of the whole compiler; each file beside this one is a test target.
