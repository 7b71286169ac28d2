//! `margay_tests::hostile`: the target `arrays`.
#![no_main]

margay_fuzz::target!("arrays");
