//! `margay_tests::hostile`: the target `checkpoint`.
#![no_main]

margay_fuzz::target!("checkpoint");
