//! `margay_tests::hostile`: the target `plan`.
#![no_main]

margay_fuzz::target!("plan");
