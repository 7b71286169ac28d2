//! Matrix units: what they multiply, and how MLIR writes that.

/// The factors of matrix units. Their sums are f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unit {
    /// f32 with 10 bits behind the point.
    Tf32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

impl Unit {
    /// Every unit, by its number.
    pub const ALL: [Unit; 3] = [Unit::Tf32, Unit::Bf16, Unit::F16];

    /// The name of the type of a factor.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Tf32 => "tf32",
            Unit::Bf16 => "bf16",
            Unit::F16 => "f16",
        }
    }

    /// The factors that lie in one word of 32 bits.
    pub fn terms_of_word(self) -> usize {
        match self {
            Unit::Tf32 => 1,
            Unit::Bf16 | Unit::F16 => 2,
        }
    }

    /// Terms of what a warp multiplies at once: 16 rows and 8 columns of 8 words.
    pub fn terms(self) -> usize {
        8 * self.terms_of_word()
    }

    /// The type that the dialect `nvvm` has for a word: that of f16 is a vector.
    pub fn word_type(self) -> &'static str {
        match self {
            Unit::Tf32 | Unit::Bf16 => "i32",
            Unit::F16 => "vector<2xf16>",
        }
    }
}
