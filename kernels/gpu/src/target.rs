//! The devices that code is made for.

/// A class of devices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GpuTarget {
    /// Compute capability 7.5 and later.
    Sm75,
    /// Compute capability 8.0 and later.
    Sm80,
    /// Compute capability 9.0 and later.
    Sm90,
    /// The emulator, which runs the same kernels on the processor.
    Emulated,
}

impl GpuTarget {
    /// Every class.
    pub const ALL: [GpuTarget; 4] = [GpuTarget::Sm75, GpuTarget::Sm80, GpuTarget::Sm90, GpuTarget::Emulated];

    /// Its name, as artifacts record it.
    pub fn name(self) -> &'static str {
        match self {
            GpuTarget::Sm75 => "sm_75",
            GpuTarget::Sm80 => "sm_80",
            GpuTarget::Sm90 => "sm_90",
            GpuTarget::Emulated => "emulated",
        }
    }

    /// The class of a name.
    pub fn from_name(name: &str) -> Option<GpuTarget> {
        GpuTarget::ALL.into_iter().find(|target| target.name() == name)
    }

    /// The least version of PTX that has it, as LLVM names the feature; `None` for the emulator, which runs no PTX.
    pub fn ptx(self) -> Option<&'static str> {
        match self {
            GpuTarget::Sm75 => Some("+ptx63"),
            GpuTarget::Sm80 => Some("+ptx70"),
            GpuTarget::Sm90 => Some("+ptx78"),
            GpuTarget::Emulated => None,
        }
    }

    /// Whether a device of a compute capability runs its code; what the capability means is
    /// `10 major + minor`.
    pub fn runs_on(self, capability: u32) -> bool {
        match self {
            GpuTarget::Sm75 => capability >= 75,
            GpuTarget::Sm80 => capability >= 80,
            GpuTarget::Sm90 => capability >= 90,
            GpuTarget::Emulated => false,
        }
    }
}
