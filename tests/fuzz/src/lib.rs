//! What the programs of this folder share. Each runs one target of `margay_tests::hostile`, with its own mutations and
//! those of libFuzzer.

pub use libfuzzer_sys;
pub use margay_tests::hostile;

/// How libFuzzer runs a target and makes new inputs: three in four times by the target's own mutation.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        use $crate::{hostile, libfuzzer_sys};

        libfuzzer_sys::fuzz_target!(|data: &[u8]| {
            (hostile::target($name).run)(data);
        });

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            if seed % 4 == 0 {
                return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
            }
            let changed = hostile::target($name).mutate(&data[..size], seed.into(), max_size);
            data[..changed.len()].copy_from_slice(&changed);
            changed.len()
        });
    };
}
