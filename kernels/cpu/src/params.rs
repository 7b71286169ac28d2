//! Parameters of kernels: plain structs of words, written by `prepare` and read by the kernel.

/// Declares a struct whose fields are `usize` or arrays of it, with its conversion to and from words.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $ty,)* }

        impl $name {
            /// The words handed to the kernel.
            pub(crate) fn words(&self) -> Vec<u64> {
                let mut words = Vec::with_capacity(size_of::<Self>() / 8);
                $(words.extend(crate::params::Field::words(&self.$field).iter().map(|&w| w as u64));)*
                words
            }

            /// The struct behind words made by [`Self::words`].
            ///
            /// # Safety
            /// `words` comes from `Self::words` and outlives the result.
            #[inline(always)]
            pub(crate) unsafe fn read<'a>(words: *const u64) -> &'a Self {
                // SAFETY: the struct is `repr(C)` and every field is a whole number of 64-bit words.
                unsafe { &*words.cast::<Self>() }
            }
        }
    };
}
pub(crate) use params;

/// A field of a parameter struct.
pub(crate) trait Field {
    /// Its words.
    fn words(&self) -> &[usize];
}

impl Field for usize {
    fn words(&self) -> &[usize] {
        std::slice::from_ref(self)
    }
}

impl<const N: usize> Field for [usize; N] {
    fn words(&self) -> &[usize] {
        self
    }
}

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
