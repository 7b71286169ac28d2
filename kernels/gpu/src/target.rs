//! The devices that code is made for, and what their data sheets say of them.

/// A class of devices: its code runs on those of its compute capability and later ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Class {
    /// Compute capability 7.5.
    Sm75,
    /// Compute capability 8.0.
    Sm80,
    /// Compute capability 9.0.
    Sm90,
}

impl Class {
    /// Every class, the oldest first.
    pub const ALL: [Class; 3] = [Class::Sm75, Class::Sm80, Class::Sm90];

    /// The compute capability, `10 major + minor`.
    pub const fn capability(self) -> u32 {
        match self {
            Class::Sm75 => 75,
            Class::Sm80 => 80,
            Class::Sm90 => 90,
        }
    }
}

/// What kernels are made for: a class of devices, or the emulator of one, which runs the same kernels on the processor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GpuTarget {
    class: Class,
    tf32: bool,
    emulated: bool,
}

/// What a device reaches at best, by its data sheet. Estimates are named so.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// Bytes per second of its memory.
    pub bytes: f64,
    /// Bytes per second that its multiprocessors draw from the cache that they share: an estimate.
    pub cached_bytes: f64,
    /// Operations on f32 per second.
    pub operations: f64,
    /// Operations of matrix units on 16-bit floats per second; none where there are no such units that kernels use.
    pub half_products: Option<f64>,
    /// The same on tf32.
    pub tf32_products: Option<f64>,
    /// Multiprocessors: each runs some blocks at a time.
    pub multiprocessors: usize,
    /// Seconds of a launch: an estimate.
    pub launch: f64,
}

impl GpuTarget {
    /// A class of devices.
    pub const fn new(class: Class) -> GpuTarget {
        GpuTarget { class, tf32: false, emulated: false }
    }

    /// The emulator of a class.
    pub const fn emulated(class: Class) -> GpuTarget {
        GpuTarget { class, tf32: false, emulated: true }
    }

    /// With products of f32 on matrix units, which round both factors to 10 bits behind the point. Classes
    /// without such units compute as before.
    #[must_use]
    pub const fn with_tf32(self) -> GpuTarget {
        GpuTarget { tf32: self.class.capability() >= Class::Sm80.capability(), ..self }
    }

    /// Every target.
    pub fn all() -> impl Iterator<Item = GpuTarget> {
        let of = |make: fn(Class) -> GpuTarget| Class::ALL.into_iter().map(make);
        let exact = of(GpuTarget::new).chain(of(GpuTarget::emulated));
        let exact: Vec<GpuTarget> = exact.collect();
        let rounding = exact.iter().map(|t| t.with_tf32()).filter(|t| t.tf32);
        exact.iter().copied().chain(rounding).collect::<Vec<_>>().into_iter()
    }

    /// Its name, as artifacts record it.
    pub fn name(self) -> &'static str {
        match (self.emulated, self.class, self.tf32) {
            (false, Class::Sm75, _) => "sm_75",
            (false, Class::Sm80, false) => "sm_80",
            (false, Class::Sm80, true) => "sm_80+tf32",
            (false, Class::Sm90, false) => "sm_90",
            (false, Class::Sm90, true) => "sm_90+tf32",
            (true, Class::Sm75, _) => "emulated-sm_75",
            (true, Class::Sm80, false) => "emulated-sm_80",
            (true, Class::Sm80, true) => "emulated-sm_80+tf32",
            (true, Class::Sm90, false) => "emulated-sm_90",
            (true, Class::Sm90, true) => "emulated-sm_90+tf32",
        }
    }

    /// The target of a name.
    pub fn from_name(name: &str) -> Option<GpuTarget> {
        GpuTarget::all().find(|target| target.name() == name)
    }

    /// The class of devices that kernels are made for.
    pub fn class(self) -> Class {
        self.class
    }

    /// Whether factors of f32 may be rounded to tf32.
    pub fn allows_tf32(self) -> bool {
        self.tf32
    }

    /// Whether it is an emulator.
    pub fn is_emulated(self) -> bool {
        self.emulated
    }

    /// How LLVM names the class, and the least version of PTX that has it; `None` for emulators, which run no PTX.
    pub fn ptx(self) -> Option<(&'static str, &'static str)> {
        match self.class {
            _ if self.emulated => None,
            Class::Sm75 => Some(("sm_75", "+ptx63")),
            Class::Sm80 => Some(("sm_80", "+ptx70")),
            Class::Sm90 => Some(("sm_90", "+ptx78")),
        }
    }

    /// Whether a device of a compute capability runs its code; what the capability means is
    /// `10 major + minor`.
    pub fn runs_on(self, capability: u32) -> bool {
        !self.emulated && capability >= self.class.capability()
    }

    /// What a device reaches at best: a T4, an A100 and an H100 by their data sheets. An emulator has those of the
    /// device, so that it runs what the device would.
    pub fn rates(self) -> Rates {
        let launch = 3e-6;
        match self.class {
            // Its matrix units take 16-bit floats in another shape, which no kernel uses.
            Class::Sm75 => Rates {
                bytes: 320e9,
                cached_bytes: 960e9,
                operations: 8.1e12,
                half_products: None,
                tf32_products: None,
                multiprocessors: 40,
                launch,
            },
            Class::Sm80 => Rates {
                bytes: 1555e9,
                cached_bytes: 4665e9,
                operations: 19.5e12,
                half_products: Some(312e12),
                tf32_products: Some(156e12),
                multiprocessors: 108,
                launch,
            },
            Class::Sm90 => Rates {
                bytes: 3350e9,
                cached_bytes: 10_050e9,
                operations: 67e12,
                half_products: Some(989e12),
                tf32_products: Some(494e12),
                multiprocessors: 132,
                launch,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let all: Vec<GpuTarget> = GpuTarget::all().collect();
        assert_eq!(all.len(), 10);
        for target in all {
            assert_eq!(GpuTarget::from_name(target.name()), Some(target));
        }
        assert_eq!(GpuTarget::from_name("sm_75+tf32"), None);
    }

    #[test]
    fn code_runs_on_later_devices_and_never_on_emulated_ones() {
        assert!(GpuTarget::new(Class::Sm80).runs_on(90) && !GpuTarget::new(Class::Sm80).runs_on(75));
        assert!(!GpuTarget::emulated(Class::Sm80).runs_on(90));
        assert_eq!(GpuTarget::emulated(Class::Sm80).ptx(), None);
    }
}
