//! `margay_tests::hostile`: the target `graph_text`.
#![no_main]

margay_fuzz::target!("graph_text");
