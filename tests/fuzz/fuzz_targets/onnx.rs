//! `margay_tests::hostile`: the target `onnx`.
#![no_main]

margay_fuzz::target!("onnx");
