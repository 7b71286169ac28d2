//! Parameters of kernels: plain structs of words, written by `prepare` and read by the kernel.

/// A type made of 64-bit words alone, so that it can be written as words and read back in place.
///
/// # Safety
/// Its layout is a whole number of `usize`, without padding, and every bit pattern is a value.
pub(crate) unsafe trait Words: Copy {}

// SAFETY: one word.
unsafe impl Words for usize {}

// SAFETY: an array has no padding.
unsafe impl<W: Words, const N: usize> Words for [W; N] {}

/// The words handed to a kernel.
pub(crate) fn to_words<W: Words>(params: &W) -> Vec<u64> {
    // SAFETY: `Words` promises that the value is words alone.
    let words =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast::<u64>(), size_of::<W>() / 8) };
    words.to_vec()
}

/// The value behind words made by [`to_words`].
///
/// # Safety
/// `words` comes from `to_words::<W>` and outlives the result.
#[inline(always)]
pub(crate) unsafe fn from_words<'a, W: Words>(words: *const u64) -> &'a W {
    // SAFETY: the caller's promise and that of `Words`.
    unsafe { &*words.cast::<W>() }
}

/// Declares a struct of words.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $ty,)* }

        const _: () = {
            const fn is_words<W: crate::params::Words>() {}
            $(is_words::<$ty>();)*
        };

        // SAFETY: `repr(C)` over fields that are words alone.
        unsafe impl crate::params::Words for $name {}
    };
}
pub(crate) use params;

/// Stands for an argument that a call does not have.
pub(crate) const ABSENT: usize = usize::MAX;

/// Hands out positions of arguments in the order of a call.
#[derive(Default)]
pub(crate) struct Positions(usize);

impl Positions {
    /// The next position.
    pub(crate) fn next(&mut self) -> usize {
        self.0 += 1;
        self.0 - 1
    }

    /// The next position if the argument is there, else [`ABSENT`].
    pub(crate) fn next_if(&mut self, present: bool) -> usize {
        if present { self.next() } else { ABSENT }
    }
}

/// The argument at `position`, or null if it is [`ABSENT`].
///
/// # Safety
/// `args` holds the arguments of the call that `position` belongs to.
#[inline(always)]
pub(crate) unsafe fn argument(args: *const *mut u8, position: usize) -> *mut f32 {
    if position == ABSENT {
        return std::ptr::null_mut();
    }
    // SAFETY: the caller's promise.
    unsafe { (*args.add(position)).cast() }
}
