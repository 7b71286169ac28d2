//! `margay_tests::hostile`: the target `program_text`.
#![no_main]

margay_fuzz::target!("program_text");
