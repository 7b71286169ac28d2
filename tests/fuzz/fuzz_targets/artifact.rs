//! `margay_tests::hostile`: the target `artifact`.
#![no_main]

margay_fuzz::target!("artifact");
