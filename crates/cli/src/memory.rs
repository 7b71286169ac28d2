//! How the allocator of the process treats large blocks.

#![allow(unsafe_code, reason = "the C library is told by a call")]

/// Blocks of so many bytes are given back to the system as soon as they are free.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 1 << 20;

/// Lets large blocks go back to the system as soon as they are free. By itself the C library of GNU keeps blocks of up to 32
/// MiB once one was freed, for each thread. To be called before the work begins, by commands that do not measure times: blocks
/// that come anew cost page faults.
pub(crate) fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number of the allocator, which no other thread is using yet or minds.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
